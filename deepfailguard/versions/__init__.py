"""Rank 2: what a version is made of, its identity, and the pool of those that exist."""
