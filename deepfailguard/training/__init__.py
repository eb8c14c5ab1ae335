"""Rank 3: the training loop, its losses and its checkpoints."""
