"""The bridge to ComfyUI: the only part of the pack that imports `comfy.*` and `folder_paths`.

folders   which files the lists offer, and what to say when one is missing
layers    linear layers whose packed bytes ComfyUI's memory manager streams
dit       the transformer under ComfyUI's calling convention, interruptible between blocks
patcher   a ModelPatcher that applies LoRA to packed weights without touching their bytes
model     MODEL: base files and adapters
lora      the arithmetic of LoRAs on a packed layer
lora_file LoRA files on a MODEL
text      CLIP: the UMT5 text encoder
vision    CLIP_VISION: the picture encoder
speech    MTK_WAV2VEC2: the voice encoder
session   what sampling borrows: VAE, picture encoder, progress
guider    GUIDER: guidance by text and by audio over ComfyUI's calls of the model
sampling  SAMPLER and SIGMAS: ComfyUI's for our segments, upstream's for ComfyUI
"""
