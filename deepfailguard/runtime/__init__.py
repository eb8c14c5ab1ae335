"""Keeping a guard answering while its versions fail: isolation, deadlines, detection, repair, exchange."""
