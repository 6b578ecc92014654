"""For developers: training and evaluation of the tiny set, parity, pictures and benchmarks.

Nothing in the product imports it.
"""
