"""Rank 5: the arrows between the parts, as functions."""
