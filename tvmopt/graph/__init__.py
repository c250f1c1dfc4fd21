"""From an `nn.Module` to kernels: import, own Relax passes (one a file), and the literal list they stand in."""
