"""Who may import whom, read from the source; and that the reader misses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui_multitalk.tests.support.imports import source_files, violations

FORBIDDEN = {
    "core imports the loader": (
        "multitalk_core/model/dit.py",
        "from ...wan_gguf_loader import ops",
    ),
    "core imports a room by dots alone": ("multitalk_core/model/dit.py", "from ... import nodes"),
    "core imports the root": ("multitalk_core/model/dit.py", "from ... import WEB_DIRECTORY"),
    "core imports the host": ("multitalk_core/model/dit.py", "import comfy.model_management"),
    "core hides it in a function": (
        "multitalk_core/model/dit.py",
        "def f():\n    if f:\n        from comfy import ops",
    ),
    "core hides it in a call": (
        "multitalk_core/model/dit.py",
        "import importlib\nimportlib.import_module('comfy.ops')",
    ),
    "core computes the name": ("multitalk_core/model/dit.py", "__import__('com' + 'fy')"),
    "core imports upwards": ("multitalk_core/inputs/masks.py", "from ..engine import generate"),
    "core imports upwards by dots alone": (
        "multitalk_core/inputs/masks.py",
        "from .. import engine",
    ),
    "core imports a library of another module": (
        "multitalk_core/model/dit.py",
        "import transformers",
    ),
    "geometry imports torch": ("multitalk_core/geometry.py", "from torch import Tensor"),
    "geometry imports what imports torch": (
        "multitalk_core/geometry.py",
        "from .inputs import masks",
    ),
    "core has a module without a level": ("multitalk_core/extra.py", ""),
    "loader imports core": ("wan_gguf_loader/ops.py", "from ..multitalk_core.model import dit"),
    "loader imports by the installed name": (
        "wan_gguf_loader/ops.py",
        "from comfyui_multitalk.wan_gguf_loader import types",
    ),
    "a node imports the host": ("nodes/loaders.py", "import folder_paths"),
    "a node imports a library": ("nodes/loaders.py", "import transformers"),
    "a node imports the command": ("nodes/loaders.py", "from ..standalone import video"),
    "the bridge imports the server": ("nodes/host.py", "import server"),
    "the command imports the host": ("standalone/cli.py", "import comfy.utils"),
    "the command imports nodes": ("standalone/cli.py", "from ..nodes.host import load"),
    "core imports the developers' tools": (
        "multitalk_core/model/dit.py",
        "from ...dev.tiny import wan",
    ),
    "the loader imports the developers' tools": (
        "wan_gguf_loader/load.py",
        "from ..tools.convert import convert",
    ),
    "a node imports the developers' tools": ("nodes/loaders.py", "from ..dev import make_tiny"),
    "the command imports a test": ("standalone/cli.py", "from ..tests.support import tiny"),
    "developers import a private name": (
        "dev/benchmarks/smoke_14b.py",
        "from ...multitalk_core.model.dit import _PART_TOKENS",
    ),
    "developers use a module's private name": (
        "tools/convert.py",
        "from ..wan_gguf_loader import files\n\nfiles._open()",
    ),
    "the root imports torch": ("__init__.py", "import torch"),
    "the root imports core": ("__init__.py", "from .multitalk_core import engine"),
    "drawing imports core": (
        "nodes/drawing/strip.py",
        "from ...multitalk_core.inputs import masks",
    ),
    "drawing imports the host": ("nodes/drawing/strip.py", "import comfy_api"),
    "core draws": ("multitalk_core/inputs/masks.py", "from PIL import Image"),
    "a unit test imports the host": ("tests/unit/test_x.py", "import comfy.sd"),
    "a parity test imports the host": ("tests/parity/test_x.py", "from folder_paths import x"),
}
ALLOWED = {
    "the engine imports core": (
        "multitalk_core/engine.py",
        "from .model.dit import MultiTalkModel",
    ),
    "core imports its own level": ("multitalk_core/config.py", "from .errors import InputError"),
    "audio imports its library": ("multitalk_core/inputs/voices.py", "import librosa"),
    "the loader imports itself": ("wan_gguf_loader/ops.py", "from .dequant import dequantize"),
    "a node imports core": ("nodes/sampler.py", "from ..multitalk_core.engine import generate"),
    "a node imports the bridge": ("nodes/sampler.py", "from . import host"),
    "the bridge imports the host": ("nodes/host.py", "import comfy.model_base, folder_paths"),
    "a part of the bridge does": ("nodes/host/model.py", "from comfy import conds"),
    "the command imports diffusers": ("standalone/vae.py", "from diffusers import X"),
    "drawing imports Pillow": ("nodes/drawing/canvas.py", "from PIL import Image"),
    "a node draws": ("nodes/preview.py", "from .drawing.strip import draw_strip"),
    "developers import a public name": (
        "dev/benchmarks/smoke_14b.py",
        "from ...multitalk_core.model.dit import MultiTalkModel\nMultiTalkModel().__class__",
    ),
    "the root imports nodes": ("__init__.py", "from .nodes.extension import MultiTalkExtension"),
}


def test_import_rule_holds(repository: Path) -> None:
    files = source_files(repository)
    assert len(files) > len(FORBIDDEN)
    found = [
        line
        for file in files
        for line in violations(
            file.read_text(encoding="utf-8"), place=file.relative_to(repository).as_posix()
        )
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("place", "source"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_import_rule_sees_a_forbidden_import(place: str, source: str) -> None:
    assert violations(source, place=place)


@pytest.mark.parametrize(("place", "source"), ALLOWED.values(), ids=ALLOWED)
def test_import_rule_lets_an_allowed_import_pass(place: str, source: str) -> None:
    assert violations(source, place=place) == []
