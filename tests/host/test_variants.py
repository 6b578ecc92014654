"""Models in other packagings, all in one graph, against plain float32 files of the same values."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from safetensors.torch import save_file

from comfyui_multitalk.dev.zoo import text_rows, values
from comfyui_multitalk.dev.zoo.files import Family, Loads
from comfyui_multitalk.dev.zoo.variants import variants
from comfyui_multitalk.tests.host import graphs

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.comfyui import Server

pytestmark = pytest.mark.host

PACKAGINGS: dict[Family, tuple[str, str]] = {
    "base": ("Comfy-Org `fp8_scaled` (`scaled_fp8`, `.scale_input`)", "diffusion_models"),
    "adapter": ("Kijai `fp8_e4m3fn_scaled_KJ`", "model_patches"),
    "text_encoder": ("city96 GGUF Q8_0", "text_encoders"),
    "clip_vision": ("open-clip visual tower (Kijai), fp16", "clip_vision"),
    "wav2vec2": ("chinese-wav2vec2-base, fp16", "audio_encoders"),
}
"""Of each model the variant of the zoo, and its folder."""
LOADERS = ("MTK_LoadWan", "MTK_LoadAdapter", "MTK_LoadUMT5", "MTK_LoadCLIPVision")
LOADERS += ("MTK_LoadWav2Vec2",)


def write_models(models: Path, scratch: Path) -> dict[str, graphs.Graph]:
    """Write each variant and a plain file of its values; give the graph of each set."""
    found = {"other": graphs.short(longest_side=64), "plain": graphs.short(longest_side=64)}
    for loader, (family, (name, folder)) in zip(LOADERS, PACKAGINGS.items(), strict=True):
        (variant,) = [v for v in variants() if (v.family, v.name) == (family, name)]
        (scratch / family).mkdir()
        written = variant.write(scratch / family)
        assert isinstance(written.outcome, Loads)
        own = {n: v for n, v in written.outcome.values.items() if n != values.TOKENS}
        if family == "text_encoder":
            own["spiece_model"] = text_rows.tokenizer()
        if family == "clip_vision":
            own = {f"vision_model.{n}": v for n, v in own.items()}
        other = models / folder / f"zoo{written.path.suffix}"
        shutil.copy(written.path, other)
        save_file({n: v.clone() for n, v in own.items()}, models / folder / "zoo_plain.safetensors")
        graphs.node(found["other"], loader)["inputs"][family] = other.name
        graphs.node(found["plain"], loader)["inputs"][family] = "zoo_plain.safetensors"
    return found


def frames(server: Server, graph: graphs.Graph) -> npt.NDArray[np.uint8]:
    sampler = next(name for name, node in graph.items() if node["class_type"] == "MTK_Sampler")
    graph["frames"] = {"class_type": "PreviewImage", "inputs": {"images": [sampler, 0]}}
    history = server.run(graph)
    assert history["status"]["status_str"] == "success", history["status"]
    shown = history["outputs"]["frames"]["images"]
    files = [server.base / file["type"] / file["subfolder"] / file["filename"] for file in shown]
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_graph_of_other_packagings_gives_the_plain_sets_frames(
    server: Server, tmp_path: Path
) -> None:
    found = write_models(server.base / "models", tmp_path)
    other, plain = (frames(server, graph).astype(int) for graph in found.values())
    assert plain.shape == (15, 64, 64, 3)
    assert plain.std() > 5
    # Of 255: the word embedding of a packed text encoder is decoded to bfloat16 in ComfyUI.
    difference = np.abs(other - plain)
    assert difference.max() <= 6
    assert difference.mean() < 0.4
