"""Unpacks the golden files before the tests of this folder are imported."""

from __future__ import annotations

from comfyui_multitalk.tests.support.once import one_at_a_time
from comfyui_multitalk.tools.parity.pack import GOLDEN, unpack

with one_at_a_time("golden"):
    unpack(GOLDEN)
