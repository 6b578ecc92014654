"""The host tests share one ComfyUI server and one run of the script inside ComfyUI."""

from comfyui_multitalk.tests.support.host import comfyui, measured, server

__all__ = ["comfyui", "measured", "server"]
