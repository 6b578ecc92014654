"""Stage `latents`: the talker's training clips, encoded once and kept on disk.

    python -m comfyui_multitalk.dev.train_tiny latents --out DIR --clips 6144

The clips are encoded by the parts that ship: the video autoencoder, the CLIP tower and the table of
encoded prompts. The image condition is made as in `multitalk_core.method.conditioning`: known
frames, then grey ones, encoded, with the photo's CLIP tokens. Motion frames have already been
through the autoencoder once, as they will have been in use.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from ...multitalk_core.geometry import FRAME_STRIDE, latent_frames
from .clips import MOTION_FRAMES, PREFIX_FRAMES, WINDOW_RADIUS, Clips, Speech, draw_clips
from .features import FILE_NAME as FEATURES_FILE
from .features import load_features
from .prompt_table import FILE_NAME as PROMPTS_FILE
from .prompt_table import load_prompts
from .vae import TinyVAE, load_vae
from .vision_tower import encode_photos, load_vision
from .voices import TRAIN_VOICES

SEED = 3
VAE_FILE = Path("vae") / "vae.safetensors"
_FOLDER = "latents"
_MOVING = (1, 3)
"""Which of every five shards go on from motion frames."""
_TEXT_MULTIPLE = 8

PhotoEncoder = Callable[[Tensor], Tensor]
"""Turns photos `(B, 3, H, W)` in [-1, 1] into CLIP tokens `(B, 257, image_dim)`."""


class Batch(NamedTuple):
    """B clips for one training step.

    Attributes:
        latents: Clean latents, `(B, 16, F, h, w)`.
        condition: Mask channels and encoded known frames, `(B, 20, F, h, w)`.
        held: Known latent frames, which the sampler does not change, `(B, 1, F, 1, 1)`, 0 or 1.
        image: CLIP tokens, `(B, 257, image_dim)`.
        text: Encoded prompts, padded with zero rows, `(B, L, text_dim)`.
        windows: Features around every frame, `(B, S, T, 5, layers, channels)`.
        masks: Token masks, `(B, S + 1, tokens of a frame)`.
        mouths: Latent cells that a mouth touches, `(B, 1, 1, h, w)`, 0 or 1.
    """

    latents: Tensor
    condition: Tensor
    held: Tensor
    image: Tensor
    text: Tensor
    windows: Tensor
    masks: Tensor
    mouths: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoders:
    """The encoders of a drawn clip."""

    vae: TinyVAE
    photos: PhotoEncoder
    prompts: dict[str, Tensor]


class Cache:
    """All clips of a folder, in memory."""

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        """Read every shard.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        self._text = load_file(folder / _FOLDER / "text.safetensors")["text"].to(device)
        self._groups: dict[int, dict[str, Tensor]] = {}
        for people in (1, 2):
            files = sorted((folder / _FOLDER).glob(f"people{people}-*.safetensors"))
            if not files:
                raise FileNotFoundError(f"{folder / _FOLDER} holds no clips. Run `latents` first.")
            shards = [load_file(file) for file in files]
            self._groups[people] = {
                name: torch.cat([shard[name] for shard in shards]).to(device) for name in shards[0]
            }

    @property
    def text_len(self) -> int:
        """Rows of a prompt with its padding."""
        return self._text.shape[1]

    def size(self, people: int) -> int:
        """Count the clips with the given number of people."""
        return len(self._groups[people]["latents"])

    def draw(
        self, count: int, *, people: int, generator: torch.Generator, wordless: float = 0.0
    ) -> Batch:
        """Draw clips with the given number of people.

        Args:
            count: Number of clips.
            people: People in each.
            generator: Generator on the CPU.
            wordless: Share of the clips that get the empty prompt; never those in which the prompt
                alone tells the wall.
        """
        group = self._groups[people]
        chosen = torch.randint(self.size(people), (count,), generator=generator)
        silent = torch.rand(count, generator=generator) < wordless
        chosen, silent = chosen.to(self._text.device), silent.to(self._text.device)
        part = {name: values[chosen] for name, values in group.items()}
        prompt = torch.where(silent & ~part["painted"], 0, part["prompt"])
        return _batch(part, text=self._text[prompt])


def _batch(part: dict[str, Tensor], *, text: Tensor) -> Batch:
    latents, known = part["latents"].float(), part["known"].view(-1, 1, 1, 1, 1)
    frame = torch.arange(latents.shape[2], device=latents.device).view(1, 1, -1, 1, 1)
    given = (frame < known).float()
    mask = given.expand(-1, FRAME_STRIDE, -1, *latents.shape[3:])
    radius = 2 * WINDOW_RADIUS + 1
    return Batch(
        latents=latents,
        condition=torch.cat((mask, part["condition"].float()), dim=1),
        held=given * (known > 1),
        image=part["image"].float(),
        text=text.float(),
        windows=part["features"].float().unfold(2, radius, 1).movedim(-1, 3),
        masks=part["masks"],
        mouths=part["mouths"][:, None, None].float(),
    )


def encode_clips(clips: Clips, encoders: Encoders, *, moving: bool) -> dict[str, Tensor]:
    """Encode drawn clips for a shard; `prompt` is missing there."""
    fresh = clips.video
    known = fresh[:, :, :1]
    if moving:
        fresh = fresh[:, :, PREFIX_FRAMES:]
        past = clips.video[:, :, : PREFIX_FRAMES + MOTION_FRAMES]
        known = encoders.vae.decode(encoders.vae.encode(past))[:, :, -MOTION_FRAMES:].clamp(-1, 1)
        fresh = torch.cat((known, fresh[:, :, MOTION_FRAMES:]), dim=2)
    grey = torch.zeros_like(fresh[:, :, known.shape[2] :])
    count = len(clips.video)
    return {
        "latents": encoders.vae.encode(fresh).half(),
        "condition": encoders.vae.encode(torch.cat((known, grey), dim=2)).half(),
        "known": torch.full((count,), latent_frames(known.shape[2])),
        "image": encoders.photos(known[:, :, -1]).half(),
        "painted": clips.painted,
        "features": clips.features.half(),
        "masks": clips.masks,
        "mouths": clips.mouths,
    }


def encode_shards(
    *,
    people: int,
    num_clips: int,
    per_shard: int,
    num_frames: int,
    speech: Speech,
    encoders: Encoders,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[dict[str, Tensor]]:
    """Draw and encode clips, shard by shard; prompt numbers are those of the encoders' table."""
    numbers = {text: number for number, text in enumerate(encoders.prompts)}
    for i_shard in range(-(-num_clips // per_shard)):
        moving = i_shard % 5 in _MOVING
        clips = draw_clips(
            min(per_shard, num_clips - i_shard * per_shard),
            people=people,
            num_frames=num_frames,
            moving=moving,
            speech=speech,
            generator=generator,
            device=device,
        )
        with torch.no_grad():
            shard = encode_clips(clips, encoders, moving=moving)
        shard["prompt"] = torch.tensor([numbers[text] for text in clips.prompts])
        yield {name: values.cpu().contiguous() for name, values in shard.items()}


def text_tensor(prompts: dict[str, Tensor]) -> Tensor:
    """Stack encoded prompts `(P, L, text_dim)`, padded with zero rows; the first is empty.

    L is a multiple of 8 and leaves every prompt at least one zero row.
    """
    if next(iter(prompts)) != "":
        raise ValueError("The first prompt of the table must be the empty one.")
    longest = max(len(tokens) for tokens in prompts.values()) + 1
    length = -(-longest // _TEXT_MULTIPLE) * _TEXT_MULTIPLE
    rows = [functional.pad(tokens, (0, 0, 0, length - len(tokens))) for tokens in prompts.values()]
    return torch.stack(rows).half()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this stage's options to those of every stage."""
    parser.add_argument("--clips", type=int, default=6144, help="half of them with two people")
    parser.add_argument("--frames", type=int, default=33, help="of a clip, 4n + 1")
    parser.add_argument("--shard", type=int, default=64, help="clips encoded at once")


def run(arguments: argparse.Namespace) -> None:
    """Encode clips until the time limit."""
    device = torch.device(arguments.device)
    folder: Path = arguments.out / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    prompts = load_prompts(arguments.out / PROMPTS_FILE)
    prompts = {"": prompts[""], **prompts}
    save_file({"text": text_tensor(prompts)}, folder / "text.safetensors")
    vision = {name: value.to(device) for name, value in load_vision(arguments.out).items()}
    encoders = Encoders(
        vae=load_vae(arguments.out / VAE_FILE).to(device),
        photos=lambda photo: encode_photos(vision, photo),
        prompts=prompts,
    )
    speech = Speech(load_features(arguments.out / FEATURES_FILE), TRAIN_VOICES)
    began = time.monotonic()
    streams = [
        encode_shards(
            people=people,
            num_clips=arguments.clips // 2,
            per_shard=arguments.shard,
            num_frames=arguments.frames,
            speech=speech,
            encoders=encoders,
            generator=torch.Generator().manual_seed(SEED + people),
            device=device,
        )
        for people in (1, 2)
    ]
    for number, pair in enumerate(zip(*streams, strict=True)):
        for people, shard in enumerate(pair, start=1):
            save_file(shard, folder / f"people{people}-{number:04d}.safetensors")
        passed = time.monotonic() - began
        sys.stdout.write(f"latents: {2 * (number + 1) * arguments.shard} clips, {passed:.0f} s\n")
        sys.stdout.flush()
        if passed > 60 * arguments.minutes:
            return
