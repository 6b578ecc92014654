"""Measurements behind the claims of the README; each is one command."""
