"""Rank 3: the probability that a version is wrong, from evidence."""
