"""Rank 4: the object that answers: versions, predictor and decision."""
