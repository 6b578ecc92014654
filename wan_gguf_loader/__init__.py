"""GGUF and safetensors weights files to torch; knows nothing of MultiTalk or ComfyUI."""
