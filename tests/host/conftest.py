"""The host tests share one ComfyUI server, and one run of each script inside ComfyUI."""

from comfyui_multitalk.tests.support.host import comfyui, measured, sampled, server

__all__ = ["comfyui", "measured", "sampled", "server"]
