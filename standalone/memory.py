"""Estimate of the card memory that a run needs, and the plans to choose from.

Three plans; each needs less memory than the one before it, but is slower or less exact. Beside the
transformer's weights, the card holds the activations of sampling, or the video VAE, or the image
encoder, one at a time; the largest of them counts.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ..multitalk_core.errors import InputError
from ..multitalk_core.geometry import Size, token_grid
from ..multitalk_core.model.dit import PART_TOKENS
from ..multitalk_core.model.residual import RESIDUAL_SIZE
from ..wan_gguf_loader.files import WeightsFile
from ..wan_gguf_loader.lora_layer import kept_bytes

TILE_PIXELS = 384
"""Side of the VAE's tiles. Tiles of 256 pixels show up to three times the difference at seams."""
TILE_STRIDE = 256
"""From tile to tile, in pixels; neighbours are blended over the rest."""

_WIDTHS, _PLAIN_WIDTHS = 4.1, 9.4
"""Tensors of tokens x width alive at once in self-attention, where all needs peak, the tokens
themselves aside: queries, keys, values and the result; without Triton also what torch's own steps
of norm and rotation leave between them. In int8 the inner width of feed-forward takes as much."""
_SLACK = 1.03
"""What the allocator loses between tensors."""
_VAE_WIDTHS = 57
"""Tensors of one frame x the VAE's width alive at once in its last block: 11 kB a pixel in
bfloat16, so 4.8 GB at 832x480 with weights and frames, as measured on an H200."""
ENCODER_SLACK = 1.1
"""Memory of a text or image encoder at work, as a multiple of its weights."""
_BLOCK = re.compile(r"(?:^|[._])blocks[._](\d+)[._]")
"""The block number in a tensor's name, in any spelling of LoRA files."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Where the weights lie and how the VAE works.

    Attributes:
        words: What the log calls it.
        streamed: Whether the transformer's blocks come from main memory one by one.
        tiled: Whether the VAE works in tiles, which changes the picture a little.
    """

    words: str
    streamed: bool
    tiled: bool


RESIDENT = Plan(words="the whole transformer on the card", streamed=False, tiled=False)
STREAMED = Plan(words="its blocks streamed from main memory", streamed=True, tiled=False)
TILED = Plan(words="blocks streamed and the VAE in tiles", streamed=True, tiled=True)
PLANS = (RESIDENT, STREAMED, TILED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Bytes of a transformer's weights.

    Attributes:
        outside: Of all that is in no block.
        blocks: Of each block.
    """

    outside: int
    blocks: tuple[int, ...]

    def on_card(self, plan: Plan) -> int:
        """Give the bytes that lie on the card throughout; a streamed block has two slots."""
        if plan.streamed:
            return self.outside + 2 * max(self.blocks, default=0)
        return self.outside + sum(self.blocks)


def count_weights(tensors: Iterable[tuple[str, int]]) -> Weights:
    """Add up the bytes of tensors, given with their names, in each block and outside."""
    outside, blocks = 0, Counter[int]()
    for name, taken in tensors:
        if block := _BLOCK.search(name):
            blocks[int(block[1])] += taken
        else:
            outside += taken
    return Weights(outside=outside, blocks=tuple(blocks.values()))


def loaded_bytes(file: WeightsFile, widest: torch.dtype | None) -> Iterator[tuple[str, int]]:
    """Give the bytes that each tensor of a file takes in memory, from the header.

    Args:
        file: The file; packed tensors stay packed.
        widest: Type to which wider plain ones are rounded; None for a LoRA.
    """
    for name, info in file.tensors.items():
        if widest is None:
            yield name, kept_bytes(info)
        else:
            yield name, min(info.nbytes, info.num_elements * widest.itemsize)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The quantities that determine how much memory a run needs.

    Attributes:
        size: Of the video.
        num_frames: Video frames of a segment.
        dim: Width D of a token.
        ffn_dim: Width inside the feed-forward layers.
        num_passes: Passes of a step; the tokens of each are alive at once.
        dtype: What the models compute in.
        transformer: Its weights.
        fused: Whether Triton does norms and rotations, without tensors in between.
        vae_width: Channels of the VAE at the size of the picture.
        vae_bytes: Of its weights.
        image_encoder_bytes: Of its weights.
    """

    size: Size
    num_frames: int
    dim: int
    ffn_dim: int
    num_passes: int
    dtype: torch.dtype
    transformer: Weights
    fused: bool
    vae_width: int
    vae_bytes: int
    image_encoder_bytes: int

    @property
    def num_tokens(self) -> int:
        """Tokens N of a segment."""
        return math.prod(token_grid(self.num_frames, self.size))

    def sampling_bytes(self) -> int:
        """Give the activations of a step and the decoded weights of a feed-forward layer."""
        tokens = self.num_passes * self.num_tokens
        at_once = max(self.num_tokens, min(tokens, PART_TOKENS))
        inner = at_once * (_WIDTHS if self.fused else _PLAIN_WIDTHS)
        decoded = 2 * self.ffn_dim
        kept = tokens * (1 + RESIDUAL_SIZE * (self.dtype == torch.bfloat16))
        total = (kept + inner + decoded) * self.dim * self.dtype.itemsize
        return int(total * _SLACK)

    def vae_bytes_at_work(self, *, tiled: bool) -> int:
        """Give the VAE with its activations, and the video it takes and gives, also in float32."""
        pixels = self.size.height * self.size.width
        at_once = min(pixels, TILE_PIXELS**2) if tiled else pixels
        wide = at_once * self.vae_width * _VAE_WIDTHS * self.dtype.itemsize
        video = pixels * self.num_frames * 3
        overlap = (TILE_PIXELS / TILE_STRIDE) ** 2 if tiled else 0  # every tile is kept
        coding = wide + video * (1 + overlap) * self.dtype.itemsize
        return int((self.vae_bytes + max(coding, video * (4 + self.dtype.itemsize))) * _SLACK)


def estimate(plan: Plan, work: Workload) -> int:
    """Give the bytes a run needs on the card at its peak."""
    at_work = max(
        work.sampling_bytes(),
        work.vae_bytes_at_work(tiled=plan.tiled),
        int(work.image_encoder_bytes * ENCODER_SLACK),
    )
    return work.transformer.on_card(plan) + at_work


def choose(work: Workload, *, free: float) -> Plan:
    """Take the first plan that fits into `free` bytes of the card.

    Raises:
        InputError: If none fits.
    """
    for plan in PLANS:
        needed = estimate(plan, work)
        if needed <= free:
            _log.info(
                "a segment needs about %.1f GB of %.1f GB free: %s",
                needed / 1e9,
                free / 1e9,
                plan.words,
            )
            return plan
    raise InputError(
        f"A segment of {work.num_frames} frames at {work.size.width}x{work.size.height} needs "
        f"about {needed / 1e9:.1f} GB on the card even with {plan.words}, but {free / 1e9:.1f} GB "
        "are free. Give a smaller --size or fewer --segment-frames."
    )


def free_bytes(device: torch.device) -> float:
    """Give the memory of a device that can be had: free, or kept by torch for later use."""
    if device.type != "cuda":
        return float("inf")
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def total_bytes(device: torch.device) -> float:
    """Give the memory a device has in all, or infinity where that is unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):  # Windows
        return float("inf")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
