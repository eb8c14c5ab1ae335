"""The batched search for the smallest change of an input that flips a model's answer."""
