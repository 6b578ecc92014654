"""Parts of the tiny set of weights; `tools/make_tiny.py` puts them together."""
