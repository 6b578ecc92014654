"""The pytest plugin of the tests that run inside ComfyUI's Python (`tests/support/inside.py`).

It starts ComfyUI on the CPU without a server, and gives the fixtures. ComfyUI's folder is the
current one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

_arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", os.environ["INSIDE_BASE"]]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.cli_args  # noqa: E402

sys.argv = _arguments

from comfyui_multitalk.nodes.host import model  # noqa: E402
from comfyui_multitalk.tests.host.inside.scene import ADAPTER, BASE, Scene, comfyui_wan  # noqa: E402
from comfyui_multitalk.tests.host.inside.talk import Talk  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Let warnings be errors only where they are ours."""
    config.addinivalue_line("filterwarnings", r"ignore:::(?!comfyui_multitalk|tests\.)")


@pytest.fixture(scope="session", autouse=True)
def without_gradients() -> Iterator[None]:
    """Run everything in inference mode, as ComfyUI runs its nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def scene(without_gradients: None) -> Scene:
    """Give the conditioning of WanImageToVideo and its KSampler."""
    return Scene()


@pytest.fixture(scope="session")
def talk(without_gradients: None) -> Talk:
    """Give the models with a photo, prompts and voices."""
    return Talk()


@pytest.fixture(scope="session")
def base(without_gradients: None) -> Any:
    """Give the MODEL of the quantised base; a test that changes it must load its own."""
    return model.load_base(BASE)


@pytest.fixture(scope="session")
def adapted(base: Any) -> Any:
    """Give the MODEL of the base with the adapter."""
    return model.load_adapter(base, ADAPTER)


@pytest.fixture(scope="session")
def theirs(without_gradients: None) -> Any:
    """Give ComfyUI's own Wan model with the decoded weights of the base."""
    return comfyui_wan()


@pytest.fixture(scope="session")
def plain(scene: Scene, base: Any) -> torch.Tensor:
    """Give what KSampler makes with the base."""
    return scene.sample(base)
