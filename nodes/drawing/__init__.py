"""Preview pictures: where the speakers are, and frames over the sound they belong to.

Functions take tensors that the caller has checked and return one picture `(H, W, 3)` uint8, drawn
by Pillow. They import neither the core nor ComfyUI, so that nodes and developers' tools share them.
"""
