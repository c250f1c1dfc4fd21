"""Smaller networks in plain PyTorch: masks, structural removal, when to prune, what is left. Nothing imports TVM."""
