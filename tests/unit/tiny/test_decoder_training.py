"""The decoder's second training: what it changes, what it leaves, and what its loss looks at."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from comfyui_multitalk.dev.train_tiny import decoder_training
from comfyui_multitalk.dev.train_tiny.vae_training import Batch


def test_change_loss_sees_a_jump_that_frames_alone_do_not() -> None:
    frames = torch.zeros(1, 3, 5, 8, 8)
    batch = Batch(frames, torch.ones(1, 1, 5, 8, 8))
    shifted = frames + 0.1  # every frame off by the same
    jumping = shifted * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).view(1, 1, 5, 1, 1)
    assert decoder_training.change_loss(jumping, batch) > 5 * decoder_training.change_loss(
        shifted, batch
    )


def test_decoder_stage_trains_the_decoder_and_leaves_the_encoder(
    repository: Path, tmp_path: Path
) -> None:
    path = tmp_path / "vae" / "vae.safetensors"
    path.parent.mkdir()
    shutil.copy(repository / "models" / "tiny" / "vae" / "wan_vae_tiny.safetensors", path)
    before = load_file(path)
    options = argparse.Namespace(
        out=tmp_path, device="cpu", minutes=0.02, batch=1, learning_rate=1e-3, clips=1
    )
    decoder_training.run(options)
    after = load_file(path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
