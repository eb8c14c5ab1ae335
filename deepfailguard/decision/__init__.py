"""Rank 3: from labels and failure probabilities to one answer."""
