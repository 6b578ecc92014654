"""Stage `vision`: a tiny CLIP vision tower that recognises drawn people.

    python -m comfyui_multitalk.dev.train_tiny vision --out DIR

Only the last but one state is trained, the one that Wan reads. Through a linear head that is
dropped afterwards, its first token predicts the colours of wall, hair, skin and shirt and the
places of the heads; every other token predicts the colours of its patch and its quarters.
Class, file format, 224 pixels and patches of 14 are those of ViT-H.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ...multitalk_core.inputs.photo import CLIP_SIZE, resize_for_clip
from ..make_tiny import TinySet
from ..tiny.save import save_weights
from .drawing import render
from .faces import Faces, sample_faces
from .motion import sample_motion
from .vision_tower import NUM_HEADS, vision_state

STEPS = 400
SEED = 7
ATTRIBUTES = ("wall", "hair", "skin", "shirt", "place")
"""What the first token tells; all but the wall of the person on the left, then on the right."""

_NUM_TOLD = 3 + 2 * (3 + 3 + 3 + 2)
_WIDTH = 64
_PATCH = 14
_BATCH = 16
_RATE = 2e-3
_WIDTHS = {1: 128, 2: 192}
_TEST_SEED = 1_000_003


def config() -> CLIPVisionConfig:
    """Give the sizes: 3 layers of 64 channels, of which Wan reads two."""
    return CLIPVisionConfig(
        hidden_size=_WIDTH,
        intermediate_size=128,
        projection_dim=_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=NUM_HEADS,
        image_size=CLIP_SIZE,
        patch_size=_PATCH,
        hidden_act="gelu",
    )


def photos(count: int, *, people: int, seed: int) -> tuple[Tensor, Faces]:
    """Draw photos `(B, 3, H, W)` in [-1, 1] and the looks they show."""
    generator = torch.Generator().manual_seed(seed)
    faces = sample_faces(count, people=people, generator=generator)
    motion = sample_motion(count, people=people, frames=1, generator=generator)
    return render(faces, motion, size=(128, _WIDTHS[people]))[:, :, 0], faces


def attributes(faces: Faces) -> dict[str, Tensor]:
    """Give the targets of the first token by name, `(B, N)`, with a deviation of 0.5 at most."""
    ends = [0, -1]  # one person stands for both

    def both(values: Tensor) -> Tensor:
        return values[:, ends].flatten(1)

    return {
        "wall": faces.background.mean(dim=1),
        "hair": both(faces.hair),
        "skin": both(faces.skin),
        "shirt": both(faces.shirt),
        "place": both(faces.centre[..., :2]) / 10,
    }


def train(*, steps: int) -> CLIPVisionModelWithProjection:
    """Train the tower on photos drawn during training."""
    torch.manual_seed(SEED)
    model = CLIPVisionModelWithProjection(config())
    whole = nn.Linear(_WIDTH, _NUM_TOLD)
    patch = nn.Linear(_WIDTH, 12)
    parameters = [*model.parameters(), *whole.parameters(), *patch.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        pictures, faces = photos(_BATCH, people=1 + step % 2, seed=SEED * 1_000_000 + step)
        pixels = resize_for_clip(pictures)
        tokens = vision_state(dict(model.named_parameters()), pixels)
        told = torch.cat(list(attributes(faces).values()), dim=1)
        loss = functional.mse_loss(whole(tokens[:, 0]), told)
        loss = loss + 0.2 * functional.mse_loss(patch(tokens[:, 1:]), patch_colours(pixels))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            sys.stdout.write(f"step {step + 1}  loss {loss.item():.4f}\n")
            sys.stdout.flush()
    return model.requires_grad_(False).eval()


def patch_colours(pixels: Tensor) -> Tensor:
    """Give the mean colours of the four quarters of each patch, `(B, 256, 12)`."""
    side = CLIP_SIZE // _PATCH
    quarters = functional.avg_pool2d(pixels, _PATCH // 2)
    parts = quarters.unflatten(3, (side, 2)).unflatten(2, (side, 2))
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def probe(model: CLIPVisionModelWithProjection, *, count: int = 600) -> dict[str, float]:
    """Fit a linear probe on the first token; give the explained variance for unseen people."""

    def seen(number: int, *, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, wanted = [], []
        for i in range(number // 50):
            pictures, faces = photos(50, people=1 + i % 2, seed=seed + i)
            states = vision_state(dict(model.named_parameters()), resize_for_clip(pictures))
            tokens.append(states[:, 0])
            wanted.append(attributes(faces))
        inputs = functional.pad(torch.cat(tokens), (0, 1), value=1.0).double()
        names = wanted[0]
        return inputs, {name: torch.cat([part[name] for part in wanted]) for name in names}

    known, known_values = seen(count, seed=_TEST_SEED)
    unseen, unseen_values = seen(count // 2, seed=2 * _TEST_SEED)
    found = {}
    for name in ATTRIBUTES:
        weights = torch.linalg.lstsq(known, known_values[name].double()).solution
        wanted = unseen_values[name].double()
        wrong = (unseen @ weights - wanted).square().sum()
        found[name] = float(1 - wrong / (wanted - wanted.mean(dim=0)).square().sum())
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the number of steps."""
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of training in all")


def run(arguments: argparse.Namespace) -> None:
    """Write the vision tower into `--out`, and print the probe's figures."""
    torch.set_num_threads(1)
    model = train(steps=arguments.steps)
    save_weights(TinySet(arguments.out).clip_vision, model.state_dict(), num_heads=NUM_HEADS)
    for name, share in probe(model).items():
        sys.stdout.write(f"{name}: {share:.3f} of the variance is predicted for unseen people\n")
