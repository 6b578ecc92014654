"""Unpacks the golden files before the tests of this folder are imported."""

from __future__ import annotations

from comfyui_multitalk.tools.parity.pack import GOLDEN, unpack

unpack(GOLDEN)
