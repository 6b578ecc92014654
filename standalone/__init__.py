"""The `multitalk` command: a photo and a voice to a talking video, without ComfyUI."""
