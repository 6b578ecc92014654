"""Sampler files of other sizes than the recorded ones, made by our own code.

They show that the comparer takes any sizes; that the numbers are right only recorded files show.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from comfyui_multitalk.dev.parity.golden import GoldenFile
from comfyui_multitalk.dev.parity.sampler import upstream_masks
from comfyui_multitalk.dev.parity.sampler_run import Chunk, Variant, run, upstream_maps
from comfyui_multitalk.tests.support.transformer import AUDIO, CONFIG, small_model

_FRAMES, _MOTION = 9, 5
_SIZE = (32, 64)
_LATENT_SIZE = (3, 4, 8)
_NUM_SEGMENTS = 5  # recorded encodings; more than any plan here asks for


def save_sampler_file(
    folder: Path, *, audio: list[int], own_maps: bool = False, **settings: Any
) -> Path:
    """Run one variant `v` on drawn inputs and write what was seen as a sampler file.

    Args:
        folder: Where the file goes.
        audio: Audio features of each speaker.
        own_maps: Whether two speakers' regions are looked at in our way, not in upstream's.
        settings: As in a file's `variants`, and `which`, `audio_guidance` (its `audio`).
    """
    variant = {"humans": 1, "steps": 2, "shift": 3.0, "text": 4.0, "audio": 3.0, "seed": 9}
    variant["audio"] = settings.pop("audio_guidance", variant["audio"])
    which = settings.pop("which", "multitalk")
    config = {
        "what": "sampler_other",
        "which": which,
        "model": _model_sizes(),
        "conf": {
            "frame_num": _FRAMES,
            "motion_frame": _MOTION,
            "target": _SIZE,
            "src": [40, 60],
        },
        "variants": {"v": variant | settings},
        "weights_file": "w.safetensors",
    }
    metadata = {"config": json.dumps(config)}
    path = folder / "run.safetensors"
    model = small_model()
    save_file(model.state_dict(), folder / "w.safetensors", metadata=metadata)
    tensors = _inputs(audio, still=which == "multitalk")
    save_file(tensors, path, metadata=metadata)
    recorded = Variant(GoldenFile(path), "v")
    masks = upstream_masks(recorded)
    with nullcontext() if own_maps else upstream_maps(model):
        seen = run(recorded, model, masks=masks, dtype=torch.float32)
    for number, chunk in enumerate(seen.chunks):
        tensors |= _outputs(chunk, f"v.v.chunk{number}", num_known=_MOTION if number else 1)
    tensors["v.v.video"] = seen.video
    save_file(tensors, path, metadata=metadata)
    return path


def _model_sizes() -> dict[str, Any]:
    return asdict(CONFIG) | {
        "in_dim": CONFIG.in_channels,
        "out_dim": CONFIG.out_channels,
        "intermediate_dim": AUDIO.hidden_dim,
        "output_dim": AUDIO.token_dim,
        "context_tokens": AUDIO.num_tokens,
        "norm_output_audio": True,
        "norm_input_visual": True,
    }


def _inputs(audio: list[int], *, still: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(8)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    pictures = torch.randint(0, 256, (3, 40, 60, 3), generator=generator).to(torch.uint8)
    names = ["in.cond_image_u8"] if still else [f"in.cond_image_u8.{i}" for i in range(3)]
    tensors = {name: pictures[i].clone() for i, name in enumerate(names)}
    tensors["in.context"] = draw(4, CONFIG.text_dim)
    tensors["in.context_null"] = draw(6, CONFIG.text_dim)
    for i_speaker, length in enumerate(audio):
        tensors[f"in.audio.person{i_speaker + 1}"] = draw(length, AUDIO.layers, AUDIO.channels)
    for i in range(_NUM_SEGMENTS):
        tensors[f"in.clip.{i}"] = draw(1, 257, CONFIG.image_dim)
        tensors[f"in.vae_decode_out.{i}"] = draw(3, _FRAMES, *_SIZE).clamp(-1, 1)
    for i in range(2 * _NUM_SEGMENTS):
        tensors[f"in.vae_encode_out.{i}"] = draw(16, *_LATENT_SIZE)
    return tensors


def _outputs(chunk: Chunk, at: str, *, num_known: int) -> dict[str, Tensor]:
    full = chunk.steps(0)
    assert chunk.final_latents is not None and chunk.image_input is not None
    return {
        f"{at}.latents": torch.stack([call.latents for call in full] + [chunk.final_latents]),
        f"{at}.noise": full[0].latents.clone(),
        f"{at}.timesteps": torch.tensor([call.timestep for call in full] + [0.0]),
        f"{at}.audio_window_mean_cond": chunk.windows.double().mean(dim=(3, 4)),
        f"{at}.pred_cond": torch.stack([full[i].velocity for i in (0, -1)]),
        f"{at}.y": full[0].condition.clone(),
        f"{at}.clip_visual_input": chunk.image_input[:, :, None].clone(),
        f"{at}.vae_encode_in.0": chunk.vae_inputs[0][:, :num_known].clone(),
        f"{at}.vae_encode_in_frames.0": torch.tensor([chunk.vae_inputs[0].shape[1], num_known]),
    }
