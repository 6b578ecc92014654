"""What the method borrows: a video VAE, an image encoder and a set of layer classes.

ComfyUI's classes, `diffusers`, `transformers` and the GGUF layers fill these roles; core knows only
the roles.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class VideoVAE(Protocol):
    """The Wan2.1 video autoencoder: 8x8 pixels and 4 frames to one latent, 16 channels."""

    def encode(self, video: Tensor) -> Tensor:
        """Turn frames `(1, 3, T, H, W)` in [-1, 1] into normalised latents `(1, 16, F, H/8, W/8)`.

        T is 4n + 1.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Turn normalised latents `(1, 16, F, h, w)` into frames in [-1, 1].

        The frames are `(1, 3, 4F - 3, 8h, 8w)` and belong to the caller, who may overwrite them.
        """


class ImageEncoder(Protocol):
    """The CLIP vision tower of Wan2.1 (ViT-H/14)."""

    def encode(self, image: Tensor) -> Tensor:
        """Turn an image `(1, 3, H, W)` in [-1, 1] into tokens `(1, 257, 1280)`.

        They are the last but one hidden state.
        """


class Packed(Protocol):
    """The input of linear layers in another form than a tensor, such as rounded to 8 bits.

    Used in place of a tensor, but only by the layers of the `Ops` whose `Feed` made it.
    """

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""


class Feed(Protocol):
    """Makes the input of linear layers in the form they multiply."""

    def takes(self, x: Tensor) -> bool:
        """Tell whether the layers take the input made from `x` in packed form."""

    def normalize(self, x: Tensor, *, gain: Tensor, shift: Tensor, eps: float) -> Packed:
        """Give `layer_norm(x) * gain + shift`, as `elementwise.normalize` does."""

    def gelu(self, x: Tensor) -> Packed:
        """Give the tanh approximation of GELU."""


class Ops(Protocol):
    """Layer classes that a model is built from, such as `model.layers.TorchOps`."""

    @property
    def Linear(self) -> Any:  # noqa: N802  (named as torch.nn names it)
        """Build a layer as `Linear(in_features, out_features, bias=True, device=None, dtype=None)`.

        A layer computes in the dtype of its input, whatever its weights are stored in.
        """

    @property
    def feed(self) -> Feed | None:
        """Give the maker of packed inputs, if the layers take any."""

    def cache_decoded(self, layers: nn.Module) -> AbstractContextManager[None]:
        """Cache the decoded weights of the layers inside `layers` for the context."""
