"""Plain PyTorch training. Nothing in here imports TVM."""
