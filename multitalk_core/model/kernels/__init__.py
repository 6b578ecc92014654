"""Triton kernels beside the plain torch formulas; imported only where Triton is installed."""
