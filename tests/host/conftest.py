"""The host tests share one ComfyUI server, and one pytest that runs inside ComfyUI's Python."""

from comfyui_multitalk.tests.support.host import comfyui, server
from comfyui_multitalk.tests.support.inside import (
    pytest_collect_directory,
    pytest_runtest_protocol,
)

__all__ = ["comfyui", "pytest_collect_directory", "pytest_runtest_protocol", "server"]
