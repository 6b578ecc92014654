"""Pictures that show a result at a glance: who is where, and frames over the sound they belong to.

Plain tensors in, one picture `(H, W, 3)` uint8 out; Pillow draws. Knows nothing of the method, of
ComfyUI or of files, so that nodes and tools draw alike. Callers give input that is already checked.
"""
