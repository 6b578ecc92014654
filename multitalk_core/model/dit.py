"""The transformer: Wan2.1 image-to-video with MultiTalk's audio branch, by upstream's names.

    latents + condition -> tokens -> blocks -> head -> velocity

The blocks are in `block.py`. Follows `WanModel` in MultiTalk `wan/modules/multitalk_model.py`. If
`config.audio` is None, the model has no audio branch. Departures: a batch axis, and those named in
`attention.py`. Time embedding, modulation, norms, rotations and softmaxes are computed in float32,
everything else in the latents' dtype; bfloat16 tokens keep a rounding residual (`residual.py`).

All entries of a batch, such as the passes of a guided step, go through one part of a block before
the next part starts, so that each weight is decoded or moved once. If one entry alone fills a card,
the entries go through the part one after another, and need the memory of one.

Letters: B batch, S speakers, T video frames, F latent frames, N tokens, L text tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..config import AudioConfig, ModelConfig
from ..errors import InputError
from ..geometry import GridSize
from ..protocols import Ops
from .attention import IMAGE_TOKENS
from .audio_tokens import AudioContext, AudioProjection, join_speakers
from .block import GELU, Block, Device, LayerNorm, Part
from .hooks import NO_HOOKS, BlockCall, Hooks
from .layers import TorchOps
from .lrope import MAX_SPEAKERS, grid_rotation
from .residual import empty_residual

_IMAGE_NORM_EPS = 1e-5
_MAX_PERIOD = 10000.0
PART_TOKENS = 16384
"""Entries are computed together up to this many video tokens. A matrix product of so many rows
fills any card; more rows would only need more memory."""


class PatchEmbedding(nn.Conv3d):
    """Turns each patch of 1 x 2 x 2 latents into one token.

    The weights are a convolution's, but are applied as one matrix product: some backends have only
    a slow 3-D convolution in half precision.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Turn `(B, C, F, h, w)` into tokens `(B, N, dim)` in the order frame, row, column."""
        _, height, width = self.kernel_size
        patches = torch.unflatten(torch.unflatten(input, 4, (-1, width)), 3, (-1, height))
        patches = patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        weight = self.weight.flatten(1).to(input.dtype)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return functional.linear(patches, weight, bias)


class ImageEmbedding(nn.Module):
    """Projects CLIP tokens of the photo to the transformer's width."""

    def __init__(self, config: ModelConfig, *, ops: Ops, device: Device = None) -> None:
        super().__init__()
        width = config.image_dim
        self.proj = nn.Sequential(
            LayerNorm(width, eps=_IMAGE_NORM_EPS, device=device),
            ops.Linear(width, width, device=device),
            nn.GELU(),
            ops.Linear(width, config.dim, device=device),
            LayerNorm(config.dim, eps=_IMAGE_NORM_EPS, device=device),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Turn `(B, 257, image_dim)` into `(B, 257, dim)`."""
        tokens: Tensor = self.proj(image)
        return tokens


class Head(nn.Module):
    """Projects tokens to the velocity of their patches, in float32."""

    def __init__(self, config: ModelConfig, *, ops: Ops, device: Device = None) -> None:
        super().__init__()
        self.norm = LayerNorm(config.dim, eps=config.eps, elementwise_affine=False)
        self.head = ops.Linear(config.dim, 4 * config.out_channels, device=device)
        self.modulation = nn.Parameter(
            torch.randn(1, 2, config.dim, device=device) / config.dim**0.5
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Turn tokens `(B, N, dim)` and time `(B, dim)` into `(B, N, 4 * channels)`, float32."""
        shift, scale = (self.modulation.float() + time.unsqueeze(1)).unsqueeze(2).unbind(1)
        velocity: Tensor = self.head(torch.addcmul(shift, self.norm(x), 1 + scale))
        return velocity


class MultiTalkModel(nn.Module):
    """Wan2.1 image-to-video with the MultiTalk audio branch.

    `ops.Linear` makes every linear layer, which computes in the dtype of its input; so quantised
    layers need no change here.

    Attributes:
        config: Sizes.
        differentiable: Whether the model can be trained; it then needs more memory.
        blocks: The transformer blocks, called in order; hooks on them can stream weights or stop.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        ops: Ops = TorchOps,
        device: Device = None,
        differentiable: bool = False,
    ) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.differentiable = differentiable
        self.patch_embedding = PatchEmbedding(
            config.in_channels, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2), device=device
        )
        self.text_embedding = nn.Sequential(
            ops.Linear(config.text_dim, dim, device=device),
            GELU(in_place=not differentiable),
            ops.Linear(dim, dim, device=device),
        )
        self.time_embedding = nn.Sequential(
            ops.Linear(config.freq_dim, dim, device=device),
            nn.SiLU(),
            ops.Linear(dim, dim, device=device),
        )
        self.time_projection = nn.Sequential(nn.SiLU(), ops.Linear(dim, 6 * dim, device=device))
        self.blocks = nn.ModuleList(
            Block(config, ops=ops, device=device, differentiable=differentiable)
            for _ in range(config.num_layers)
        )
        self.head = Head(config, ops=ops, device=device)
        self.img_emb = ImageEmbedding(config, ops=ops, device=device)
        if config.audio is not None:
            self.audio_proj = AudioProjection(config.audio, ops=ops, device=device)

    def project_audio(self, windows: Tensor) -> Tensor:
        """Turn a segment's windows into audio tokens for an `AudioContext`.

        Args:
            windows: Wav2vec2 features around each video frame, `(S, T, 5, L, C)`, T = 4n + 1, in
                the dtype to compute in.

        Returns:
            Audio tokens, `(1, F, S * num_tokens, token_dim)`, speaker 1 first.

        Raises:
            InputError: If the model has no audio layers, or the windows do not fit them.
        """
        self._audio_config()
        return join_speakers(self.audio_proj(windows))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        *,
        condition: Tensor,
        text: Tensor,
        image: Tensor,
        audio: AudioContext | Sequence[AudioContext] | None = None,
        hooks: Hooks = NO_HOOKS,
    ) -> Tensor:
        """Predict the velocity of noisy latents.

        Args:
            latents: Noisy latents, `(B, 16, F, h, w)`, h and w even; their dtype is the compute
                dtype.
            timestep: `(B,)`, 0 to 1000.
            condition: Four mask channels, then the encoded photo, `(B, 20, F, h, w)`.
            text: Text tokens, `(B, L, text_dim)`, L at most `text_len`; zero rows fill it up.
            image: CLIP tokens of the photo, `(B, 257, image_dim)`.
            audio: Audio of the batch, or one value for each entry if their numbers of speakers
                differ; `None` is the base model.
            hooks: Functions of a host, called in and around the blocks.

        Returns:
            Velocity, `(B, 16, F, h, w)`, in the latents' dtype.

        Raises:
            InputError: If an input does not fit; the message says which.
        """
        grid = _token_grid(latents)
        parts = self._parts(audio, latents=latents, grid=grid)
        dtype = latents.dtype
        x = self.patch_embedding(torch.cat((latents, condition.to(dtype)), dim=1))
        time = self.time_embedding(time_features(timestep, width=self.config.freq_dim))
        steps = self.time_projection(time).unflatten(1, (6, self.config.dim))
        context = self._context(text.to(dtype), image.to(dtype))
        rotation = grid_rotation(
            grid, head_dim=self.config.head_dim, device=x.device, placement=hooks.placement
        )
        residual = None if self.differentiable else empty_residual(x)
        for index, block in enumerate(self.blocks):
            run = functools.partial(block, parts=parts, hooks=hooks, residual=residual)
            x = hooks.around_block(BlockCall(index, run, x, time, steps, context, rotation))
        # One part after another, because the head computes in float32.
        velocity = [self.head(x[entries], time[entries]) for entries, _ in parts]
        return _join_patches(torch.cat(velocity), grid=grid).to(dtype)

    def _audio_config(self) -> AudioConfig:
        if self.config.audio is None:
            raise InputError("The model has no audio layers. Add a MultiTalk adapter to it.")
        return self.config.audio

    def _context(self, text: Tensor, image: Tensor) -> Tensor:
        """Embed photo and text; zero rows of text are embedded like others, as upstream."""
        missing = self.config.text_len - text.shape[1]
        if missing < 0:
            raise InputError(
                f"The prompt has {text.shape[1]} tokens but the model reads at most "
                f"{self.config.text_len}. Shorten the prompt."
            )
        if image.shape[1] != IMAGE_TOKENS:
            raise InputError(
                f"The photo has {image.shape[1]} CLIP tokens; Wan2.1 needs {IMAGE_TOKENS} "
                "(ViT-H/14 at 224x224). Load the CLIP vision model of Wan2.1."
            )
        text = self.text_embedding(functional.pad(text, (0, 0, 0, missing)))
        return torch.cat((self.img_emb(image), text), dim=1)

    def _parts(
        self,
        audio: AudioContext | Sequence[AudioContext] | None,
        *,
        latents: Tensor,
        grid: GridSize,
    ) -> list[Part]:
        """Divide the batch, and check the audio of each part."""
        batch = latents.shape[0]
        at_once = entries_at_once(grid.frames * grid.height * grid.width)
        if self.differentiable:
            at_once = batch
        if isinstance(audio, Sequence):
            at_once = 1
        parts = []
        for start in range(0, batch, at_once):
            entries = slice(start, start + at_once)
            heard = audio[start] if isinstance(audio, Sequence) else audio
            if heard is None or heard.strength == 0.0:
                parts.append(Part(entries, None))
                continue
            tokens, masks = heard.tokens, self._speaker_regions(heard, batch=batch, grid=grid)
            parts.append(
                Part(
                    entries,
                    AudioContext(
                        (tokens[entries] if tokens.shape[0] > 1 else tokens).to(latents.dtype),
                        masks if masks is None or masks.ndim == 2 else masks[entries],
                        torch.tensor(heard.strength, device="cpu"),
                    ),
                )
            )
        return parts

    def _speaker_regions(self, audio: AudioContext, *, batch: int, grid: GridSize) -> Tensor | None:
        """Check the audio and give the token masks if two speakers need them."""
        config = self._audio_config()
        tokens, token_masks = audio.tokens, audio.token_masks
        if tokens.shape[1] != grid.frames:
            raise InputError(
                f"The audio tokens span {tokens.shape[1]} latent frames but the video has "
                f"{grid.frames}. Make both for the same segment."
            )
        num_speakers, rest = divmod(tokens.shape[2], config.num_tokens)
        if rest or not num_speakers:
            raise InputError(
                f"A frame has {tokens.shape[2]} audio tokens but needs {config.num_tokens} for "
                "each speaker. Make them with this model's `project_audio`."
            )
        if num_speakers == 1:
            return None
        if num_speakers > MAX_SPEAKERS:
            raise InputError(
                f"There are {num_speakers} speakers; the adapter was trained with at most "
                f"{MAX_SPEAKERS}. Remove speakers."
            )
        expected = (num_speakers + 1, grid.height * grid.width)
        shapes = (expected, (batch, *expected))
        if token_masks is None or tuple(token_masks.shape) not in shapes:
            given = "none" if token_masks is None else f"shape {tuple(token_masks.shape)}"
            raise InputError(
                f"Two speakers need token masks of shape {expected} (one row per speaker and one "
                f"for the background), got {given}. Give the masks of this video's size."
            )
        return token_masks


def entries_at_once(num_tokens: int) -> int:
    """Return how many entries of a batch, of `num_tokens` video tokens each, run at once."""
    return max(1, PART_TOKENS // num_tokens)


def time_features(timestep: Tensor, *, width: int) -> Tensor:
    """Return sinusoidal features of time steps `(B,)`: cosines first, `(B, width)`, float32."""
    half = torch.arange(width // 2, dtype=torch.float64, device=timestep.device) / (width // 2)
    angles = torch.outer(timestep.double(), _MAX_PERIOD**-half)
    return torch.cat((angles.cos(), angles.sin()), dim=1).float()


def _token_grid(latents: Tensor) -> GridSize:
    frames, height, width = latents.shape[2:]
    if height % 2 or width % 2:
        raise InputError(
            f"Latents of {width}x{height} cannot be divided into patches of 2x2. "
            "Choose a video size whose sides are multiples of 16 pixels."
        )
    return GridSize(frames, height // 2, width // 2)


def _join_patches(tokens: Tensor, *, grid: GridSize) -> Tensor:
    """Turn `(B, N, 2 * 2 * C)` back into `(B, C, F, h, w)`."""
    patches = tokens.view(tokens.shape[0], *grid, 2, 2, -1)
    return patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)
