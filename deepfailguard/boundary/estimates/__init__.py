"""Boundary distances at about the price of a forward pass: estimated, where a search would verify."""
