"""A guard as a server."""
