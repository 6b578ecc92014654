"""Unpacks the golden files before the tests of this folder are imported."""

from __future__ import annotations

from comfyui_multitalk.dev.parity.pack import GOLDEN, unpack
from comfyui_multitalk.tests.support.once import one_at_a_time

with one_at_a_time("golden"):
    unpack(GOLDEN)
