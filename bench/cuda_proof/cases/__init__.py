"""The boundary shapes of each rule of schedules/cuda, for the tests and for the table."""
