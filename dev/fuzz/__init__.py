"""Damaged weights files by the million: what the loaders make of each."""
