"""The built-in networks: plain PyTorch, small enough to tune in a minute."""
