"""Rank 3: what can go wrong, done on purpose, with a receipt."""
