"""Compares what tvmopt builds with what a user would run instead. `python -m bench --help` says how."""
