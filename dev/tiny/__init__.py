"""Parts of the tiny set of weights; `dev/make_tiny.py` puts them together."""
