"""The method around the transformer: segments, conditioning, guidance, sampling, crossfades."""
