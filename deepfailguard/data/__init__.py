"""Rank 2: image sets, their splits and where they come from."""
