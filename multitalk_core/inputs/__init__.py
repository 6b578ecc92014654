"""What a video is made from: the photo, the voices, their features, and the speakers' masks."""
