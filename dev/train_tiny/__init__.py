"""Training of the tiny model family: drawn faces, spoken by a synthesiser, one stage a command."""
