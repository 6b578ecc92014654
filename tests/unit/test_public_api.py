"""What a library offers is what its `__all__` lists: all there, nothing beside it."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest


@pytest.mark.parametrize("library", ["multitalk_core", "wan_gguf_loader"])
def test_public_api_is_all(library: str) -> None:
    module = importlib.import_module(f"comfyui_multitalk.{library}")
    listed = module.__all__
    assert listed
    assert len(listed) == len(set(listed))
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "annotations" and not isinstance(value, ModuleType)
    }
    assert public == set(listed)
