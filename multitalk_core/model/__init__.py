"""The transformer: its blocks, attention, rotary labels, and the kernels that make them fast."""
