"""What runs at call time: executables, threads, artifacts, verification and the one timer."""
