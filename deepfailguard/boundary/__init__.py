"""Rank 3: how small a change of an input flips a version's answer."""
