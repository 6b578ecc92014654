"""The tiny video autoencoder: Wan2.1's graph, every convolution a 2D one, for training.

Follows `WanVAE_` in MultiTalk `wan/modules/vae.py` (the file is Wan2.1's): same names, shapes and
results as ComfyUI and diffusers get from the file, which run it in chunks of frames where this runs
all frames at once. Departures, all of them weights that stay zero, so that the file is a plain one:
only the convolutions in `_LOOK_BACK` see earlier frames, so that a frame depends on a bounded
stretch of the past and a long video decodes as well as a short one; and the attention adds nothing,
so that training on small crops holds for whole pictures. `conv1` and `conv2` hold nothing but the
scale of the latents.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 16
LATENT_CHANNELS = 16
_MULTIPLIERS = (1, 2, 4, 4)
_NUM_BLOCKS = 2
_TIME_DOWN = (False, True, True)
_LOOK_BACK = (
    "encoder.downsamples.6.residual.6",
    "encoder.downsamples.7.residual.6",
    "encoder.middle.0.residual.6",
    "decoder.conv1",
    "decoder.middle.0.residual.6",
    "decoder.upsamples.4.residual.6",
)
_QUIET = -30.0
"""Logarithm of the variance of a latent: none."""
# as Wan2.1 scales its latents (its `vae.py`): what every host subtracts and divides by
MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
       3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip

_TINY = 1e-24
"""Keeps an empty pixel from being divided by zero."""

Activate = Callable[[Tensor, Tensor], Tensor]


def activate(rows: Tensor, gamma: Tensor) -> Tensor:
    """Normalise `(N, C)` over its channels, scale by `(C,)`, apply SiLU; fp32 inside."""
    inverse = rows.float().square().mean(dim=1, keepdim=True).clamp_min(_TINY).rsqrt()
    return functional.silu(rows.float() * inverse * gamma).to(rows.dtype)


class TinyVAE(nn.Module):
    """A Wan2.1 video autoencoder of any width.

    Internally the frames of all clips form one batch: `(B * T, C, H, W)`.
    """

    def __init__(self, width: int = WIDTH, *, activate: Activate = activate) -> None:
        """Start as a picture autoencoder that repeats frames.

        Args:
            width: Channels at full size.
            activate: Function for norm and SiLU, for example a compiled one.
        """
        super().__init__()
        self.encoder = _Encoder(width, activate)
        self.conv1 = _Conv(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1, time=1)
        self.conv2 = _Conv(LATENT_CHANNELS, LATENT_CHANNELS, 1, time=1)
        self.decoder = _Decoder(width, activate)
        for name in _LOOK_BACK:
            self.get_submodule(name).look_back = True
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(STD), persistent=False)
        for part in (self.conv1, self.conv2):
            part.requires_grad_(False)
        self.whiten(torch.zeros(LATENT_CHANNELS), torch.ones(LATENT_CHANNELS))

    def encode(self, video: Tensor) -> Tensor:
        """Turn frames into latents, scaled like Wan's.

        Args:
            video: In [-1, 1], `(B, 3, T, H, W)`, T = 4n + 1, H and W multiples of 8.

        Returns:
            Latents `(B, 16, n + 1, H/8, W/8)`, float32.
        """
        latents = self.raw_latents(video)[:, :LATENT_CHANNELS].float()
        latents = latents.unflatten(0, (len(video), -1)).transpose(1, 2)
        return (latents - _spread(self.mean)) / _spread(self.std)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents `(B, 16, F, h, w)` into frames `(B, 3, 4F - 3, 8h, 8w)`, not clamped."""
        plain = latents * _spread(self.std) + _spread(self.mean)
        x = self.conv2(_frames(plain), len(plain))
        frames = self.decoder(x, len(plain)).float()
        return frames.unflatten(0, (len(plain), -1)).transpose(1, 2)

    def spatial_weights(self) -> set[str]:
        """Give the names of the weights of which only the last slice in time is used."""
        return {
            f"{name}.weight"
            for name, part in self.named_modules()
            if isinstance(part, _Conv) and part.is_spatial
        }

    def raw_latents(self, video: Tensor) -> Tensor:
        """Means and logarithms of variances as the file has them, `(B * F, 32, h, w)`."""
        return self.conv1(self.encoder(_frames(video), len(video)), len(video))

    @torch.no_grad()
    def whiten(self, mean: Tensor, std: Tensor) -> None:
        """Rescale latents of this mean and deviation, `(16,)`, to 0 and 1; pictures stay."""
        mean, std = mean.to(self.mean), std.to(self.std)
        count = LATENT_CHANNELS
        if not self.conv1.weight.any():
            self.conv1.weight[:count, :count, 0, 0, 0] = torch.diag(self.std)
            self.conv1.bias[:count] = self.mean
            self.conv1.bias[count:] = _QUIET
            self.conv2.weight[:, :, 0, 0, 0] = torch.diag(1 / self.std)
            self.conv2.bias.copy_(-self.mean / self.std)
        shifted = (self.conv1.bias[:count] - self.mean - self.std * mean) / std + self.mean
        self.conv1.weight[:count] /= std.view(-1, 1, 1, 1, 1)
        self.conv1.bias[:count] = shifted
        matrix = self.conv2.weight[:, :, 0, 0, 0]
        self.conv2.bias += matrix @ (self.mean - self.mean * std + self.std * mean)
        self.conv2.weight *= std.view(1, -1, 1, 1, 1)


def load_vae(path: Path) -> TinyVAE:
    """Read a published file: evaluation mode, float32, on the CPU.

    Raises:
        ValueError: If its weights use parts of the graph that the tiny one leaves out.
    """
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    model = TinyVAE(state["encoder.conv1.weight"].shape[0])
    model.load_state_dict(state)
    for name, part in model.named_modules():
        if isinstance(part, _Conv) and part.is_spatial and part.weight[:, :, :-1].any():
            raise ValueError(f"{path.name}: {name} looks back in time; train_tiny's do not.")
        if isinstance(part, _Attention) and (part.proj.weight.any() or part.proj.bias.any()):
            raise ValueError(f"{path.name}: {name} is in use; train_tiny's add nothing.")
    return model.requires_grad_(False).eval()


class _Conv(nn.Module):
    """A causal 3D convolution; without `look_back` only its last slice in time is used."""

    def __init__(self, inputs: int, outputs: int, size: int, *, time: int | None = None) -> None:
        super().__init__()
        time = size if time is None else time
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, time, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.look_back = False

    def forward(self, x: Tensor, num_clips: int) -> Tensor:
        size = self.weight.shape[-1]
        if not self.look_back:
            return functional.conv2d(x, self.weight[:, :, -1], self.bias, padding=size // 2)
        return _time_conv(_pad_past(x, num_clips), self, num_clips, padding=size // 2)

    @property
    def is_spatial(self) -> bool:
        """Whether the weights for earlier frames are unused."""
        return self.weight.shape[-1] > 1 and not self.look_back

    @torch.no_grad()
    def draw(self, gain: float = 1.0) -> None:
        """Initialise as a 2D convolution that multiplies the variance by `gain` squared."""
        fan_in = self.weight.shape[1] * self.weight.shape[-1] ** 2
        self.weight[:, :, -1].normal_(std=gain * fan_in**-0.5)


class _Norm(nn.Module):
    """Norm over channels, and SiLU, which has no weights."""

    def __init__(self, *shape: int, activate: Activate) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(shape))
        self._activate = activate

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        rows = self._activate(pixels.flatten(0, 2), self.gamma.flatten())
        return rows.view(pixels.shape).permute(0, 3, 1, 2)


class _Plain(nn.Module):
    """Fills the place of a layer without weights (SiLU, dropout), to keep the numbers."""


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, activate: Activate) -> None:
        super().__init__()
        self.residual = nn.ModuleList(
            (
                _Norm(inputs, 1, 1, 1, activate=activate),
                _Plain(),
                _Conv(inputs, outputs, 3),
                _Norm(outputs, 1, 1, 1, activate=activate),
                _Plain(),
                _Plain(),
                _Conv(outputs, outputs, 3),
            )
        )
        self.shortcut = _Conv(inputs, outputs, 1) if inputs != outputs else None
        self.residual[2].draw(1.3)
        self.residual[6].draw(0.3)
        if self.shortcut is not None:
            self.shortcut.draw()

    def forward(self, x: Tensor, num_clips: int) -> Tensor:
        inner = self.residual[2](self.residual[0](x), num_clips)
        inner = self.residual[6](self.residual[3](inner), num_clips)
        return inner + (x if self.shortcut is None else self.shortcut(x, num_clips))


class _Attention(nn.Module):
    """Weights of an attention whose projection is zero: it adds nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _Norm(width, 1, 1, activate=activate)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)
        self.requires_grad_(False)
        for tensor in (*self.to_qkv.parameters(), *self.proj.parameters()):
            tensor.zero_()

    def forward(self, x: Tensor, num_clips: int) -> Tensor:
        return x


class _Down(nn.Module):
    def __init__(self, width: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleList((_Plain(), nn.Conv2d(width, width, 3, stride=2)))
        self.time_conv = _Conv(width, width, 1, time=3) if time else None
        if self.time_conv is not None:  # the mean of the two frames that a latent adds
            with torch.no_grad():
                self.time_conv.weight[:, :, 1:, 0, 0] = 0.5 * torch.eye(width)[:, :, None]

    def forward(self, x: Tensor, num_clips: int) -> Tensor:
        x = self.resample[1](functional.pad(x, (0, 1, 0, 1)))
        frames = x.unflatten(0, (num_clips, -1))
        if self.time_conv is None or frames.shape[1] == 1:
            return x
        later = _time_conv(x, self.time_conv, num_clips, stride=2)
        later = later.unflatten(0, (num_clips, -1))
        return _channels_last(torch.cat((frames[:, :1], later), dim=1))


class _Up(nn.Module):
    def __init__(self, width: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleList((_Plain(), nn.Conv2d(width, width // 2, 3, padding=1)))
        self.time_conv = _Conv(width, 2 * width, 1, time=3) if time else None
        if self.time_conv is not None:  # every frame twice
            with torch.no_grad():
                self.time_conv.weight[:, :, 2, 0, 0] = torch.eye(width).repeat(2, 1)

    def forward(self, x: Tensor, num_clips: int) -> Tensor:
        frames = x.unflatten(0, (num_clips, -1))
        if self.time_conv is not None and frames.shape[1] > 1:
            later = _pad_past(frames[:, 1:].flatten(0, 1), num_clips)
            later = _time_conv(later, self.time_conv, num_clips)
            later = later.unflatten(1, (2, -1)).flatten(0, 1)
            later = later.unflatten(0, (num_clips, -1))
            x = _channels_last(torch.cat((frames[:, :1], later), dim=1))
        return self.resample[1](functional.interpolate(x, scale_factor=2, mode="nearest-exact"))


class _Encoder(nn.Module):
    def __init__(self, width: int, activate: Activate) -> None:
        super().__init__()
        widths = [width, *(width * multiplier for multiplier in _MULTIPLIERS)]
        self.conv1 = _Conv(3, width, 3)
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise(widths)):
            for block in range(_NUM_BLOCKS):
                layers.append(_Residual(after if block else before, after, activate))
            if level < len(_TIME_DOWN):
                layers.append(_Down(after, time=_TIME_DOWN[level]))
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(widths[-1], activate)
        self.head = _head(widths[-1], 2 * LATENT_CHANNELS, activate)
        self.conv1.draw()

    def forward(self, x: Tensor, num_clips: int) -> Tensor:
        x = self.conv1(x, num_clips)
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, num_clips)
        return self.head[2](self.head[0](x), num_clips)


class _Decoder(nn.Module):
    def __init__(self, width: int, activate: Activate) -> None:
        super().__init__()
        widths = [width * multiplier for multiplier in (_MULTIPLIERS[-1], *_MULTIPLIERS[::-1])]
        time_up = _TIME_DOWN[::-1]
        self.conv1 = _Conv(LATENT_CHANNELS, widths[0], 3)
        self.middle = _middle(widths[0], activate)
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise(widths)):
            entering = before // 2 if level else before  # each upsampling halves the channels
            for block in range(_NUM_BLOCKS + 1):
                layers.append(_Residual(after if block else entering, after, activate))
            if level < len(time_up):
                layers.append(_Up(after, time=time_up[level]))
        self.upsamples = nn.ModuleList(layers)
        self.head = _head(widths[-1], 3, activate)
        self.conv1.draw()

    def forward(self, x: Tensor, num_clips: int) -> Tensor:
        x = self.conv1(x, num_clips)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, num_clips)
        return self.head[2](self.head[0](x), num_clips)


def _middle(width: int, activate: Activate) -> nn.ModuleList:
    first, last = (_Residual(width, width, activate) for _ in range(2))
    return nn.ModuleList((first, _Attention(width), last))


def _head(width: int, outputs: int, activate: Activate) -> nn.ModuleList:
    conv = _Conv(width, outputs, 3)
    conv.draw()
    return nn.ModuleList((_Norm(width, 1, 1, 1, activate=activate), _Plain(), conv))


def _time_conv(
    x: Tensor, conv: _Conv, num_clips: int, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """Convolve three frames at a time, as a 2D convolution of their channels side by side."""
    frames = x.unflatten(0, (num_clips, -1))
    num_windows = (frames.shape[1] - 3) // stride + 1
    reach = stride * (num_windows - 1) + 1
    windows = torch.cat([frames[:, tap : tap + reach : stride] for tap in range(3)], dim=2)
    weight = conv.weight.transpose(1, 2).flatten(1, 2)
    return functional.conv2d(_channels_last(windows), weight, conv.bias, padding=padding)


def _pad_past(x: Tensor, num_clips: int) -> Tensor:
    """Put two empty frames before each clip."""
    frames = x.unflatten(0, (num_clips, -1))
    past = torch.zeros_like(frames[:, :1]).expand(-1, 2, -1, -1, -1)
    return torch.cat((past, frames), dim=1).flatten(0, 1)


def _frames(clips: Tensor) -> Tensor:
    """`(B, C, T, H, W)` as `(B * T, C, H, W)`, channels last in memory."""
    return _channels_last(clips.transpose(1, 2))


def _channels_last(frames: Tensor) -> Tensor:
    """`(B, T, C, H, W)` as `(B * T, C, H, W)`, channels last in memory."""
    return frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _spread(channels: Tensor) -> Tensor:
    return channels.view(1, -1, 1, 1, 1)
