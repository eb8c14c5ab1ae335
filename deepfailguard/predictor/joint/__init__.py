"""The predictor that sees all versions' evidence at once."""
