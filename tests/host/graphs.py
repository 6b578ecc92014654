"""The workflows on the tiny set: folders, inputs and small settings."""

from __future__ import annotations

import copy
import json
import math
import shutil
import struct
import wave
from pathlib import Path
from typing import Any, BinaryIO

from comfyui_multitalk.tests.support.tiny import TinySet

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflows"
TITLES = {
    "try_it_now": "Try it now",
    "photo_to_talking_video": "Photo to talking video",
    "photo_to_talking_video_quick": "Photo to talking video (quick)",
    "two_speakers": "Two people talking",
    "one_segment_custom_sampler": "One segment with a custom sampler",
}
"""The templates: the name of the API form, and the name that people read."""
WORKFLOWS = tuple(TITLES)[1:]
"""Those that need the user's files."""
QUICK_LORA = "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors"
SMALL = {
    "size": "longest side",
    "longest_side": 64,
    "steps": 1,
    "segment_frames": 33,
    "motion_frames": 9,
}
SMALL_SEGMENT = {
    "WanImageToVideo": {"width": 64, "height": 64, "length": 33},
    "MTK_Sigmas": {"steps": 1},
    "TrimAudioDuration": {"duration": 33 / 25},
}
Graph = dict[str, dict[str, Any]]


def fill_folders(base: Path, *, tiny: TinySet, examples: Path) -> None:
    """Give a server's folder the tiny set as models, and the examples as input."""
    fill_models(base / "models", tiny=tiny)
    sources = base / "input"
    sources.mkdir()
    for file in (*examples.glob("*.png"), *examples.glob("*.wav")):
        shutil.copy(file, sources)
    write_tone(sources / "short.wav", seconds=0.6)


def fill_models(models: Path, *, tiny: TinySet) -> None:
    """Link the tiny set under the names the workflows ask for."""
    names = {
        tiny.base: "diffusion_models/wan2.1-i2v-14b-480p-Q4_K_M.gguf",
        tiny.adapter: "model_patches/multitalk.safetensors",
        tiny.text_encoder: "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        tiny.clip_vision: "clip_vision/clip_vision_h.safetensors",
        tiny.wav2vec2: "audio_encoders/wav2vec2-chinese-base_fp16.safetensors",
        tiny.vae: "vae/wan_2.1_vae.safetensors",
        tiny.lora: "loras/lora_tiny.safetensors",
    }
    for file, name in names.items():
        link(models / name, file)
    link(models / "loras" / QUICK_LORA, tiny.lora)


def link(place: Path, file: Path) -> None:
    """Make a symbolic link, and the folders it lies in."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(file)


def file(name: str) -> Path:
    """Give the file of the template whose API form has a name."""
    return FOLDER / f"{TITLES[name]}.json"


def load(name: str, **settings: Any) -> Graph:
    """Load a workflow's API form, with small settings, and those given on the sampler."""
    graph: Graph = json.loads((FOLDER / "api" / f"{name}.json").read_text())
    small = {**SMALL_SEGMENT, "MTK_Sampler": {**SMALL, **settings}}
    for entry in graph.values():
        entry["inputs"].update(small.get(entry["class_type"], {}))
    return graph


def short(**settings: Any) -> Graph:
    """Give the workflow of one speaker with 0.6 seconds of sound."""
    graph = load(WORKFLOWS[0], **settings)
    node(graph, "LoadAudio")["inputs"]["audio"] = "short.wav"
    return graph


def node(graph: Graph, kind: str, index: int = 0) -> dict[str, Any]:
    """Give the `index`-th node of a type."""
    return [entry for entry in graph.values() if entry["class_type"] == kind][index]


def without(graph: Graph, kind: str) -> Graph:
    """Give a copy without the nodes of a type and the links to them."""
    kept = copy.deepcopy({k: v for k, v in graph.items() if v["class_type"] != kind})
    for entry in kept.values():
        for name, value in list(entry["inputs"].items()):
            if isinstance(value, list) and value[0] not in kept:
                del entry["inputs"][name]
    return kept


def write_tone(
    place: Path | BinaryIO, *, seconds: float, rate: int = 16000, volume: float = 0.3
) -> None:
    """Write a mono WAV of a hum; a volume of 0 is silence."""
    samples = [
        round(32767 * volume * math.sin(2 * math.pi * 180 * i / rate) * (1 + math.sin(i / 999)) / 2)
        for i in range(round(seconds * rate))
    ]
    with wave.open(str(place) if isinstance(place, Path) else place, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
