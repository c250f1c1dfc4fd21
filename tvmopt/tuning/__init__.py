"""Search: what can be tried, measuring it, and the log of what was found."""
