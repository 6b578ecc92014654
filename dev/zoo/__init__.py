"""The zoo: every way that people hold the weights, as tiny files, and what must come of each."""
