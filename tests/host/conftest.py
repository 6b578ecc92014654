"""The host tests share one ComfyUI server, and one run of each script inside ComfyUI."""

from comfyui_multitalk.tests.support.host import citizen, comfyui, measured, sampled, server

__all__ = ["citizen", "comfyui", "measured", "sampled", "server"]
