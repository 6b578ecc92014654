"""What a weights file is, and the sizes of the model it holds."""
