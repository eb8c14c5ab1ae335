"""Rank 4: measures, studies and reports on arrays and records, never on models."""
