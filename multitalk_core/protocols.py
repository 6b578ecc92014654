"""What the method borrows: a video VAE, an image encoder and a set of layer classes.

ComfyUI's classes, `diffusers`, `transformers` and the GGUF layers fill these roles; core knows only
the roles.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn


class VideoVAE(Protocol):
    """The Wan2.1 video autoencoder: 8x8 pixels and 4 frames to one latent, 16 channels."""

    def encode(self, video: Tensor) -> Tensor:
        """Turn frames `(1, 3, T, H, W)` in [-1, 1] into normalised latents `(1, 16, F, H/8, W/8)`.

        T is 4n + 1.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Turn normalised latents `(1, 16, F, h, w)` into frames in [-1, 1].

        The frames are `(1, 3, 4F - 3, 8h, 8w)`.
        """
        ...


class ImageEncoder(Protocol):
    """The CLIP vision tower of Wan2.1 (ViT-H/14)."""

    def encode(self, image: Tensor) -> Tensor:
        """Turn an image `(1, 3, H, W)` in [-1, 1] into tokens `(1, 257, 1280)`.

        They are the last but one hidden state.
        """
        ...


class Feed(Protocol):
    """Makes the input of linear layers in the form that they multiply, such as 8-bit rows.

    The packed form is used in place of a tensor and has a tensor's `shape`; only the layers of the
    same `Ops` take it.
    """

    def takes(self, x: Tensor) -> bool:
        """Tell whether the layers want their input, made from `x`, in packed form."""
        ...

    def normalize(self, x: Tensor, *, gain: Tensor, shift: Tensor, eps: float) -> Any:
        """Give `layer_norm(x) * gain + shift`, as `elementwise.normalize` does."""
        ...

    def gelu(self, x: Tensor) -> Any:
        """Give the tanh approximation of GELU."""
        ...


class Ops(Protocol):
    """Layer classes that a model is built from, such as `model.layers.TorchOps`."""

    @property
    def Linear(self) -> Any:  # noqa: N802  (named as torch.nn names it)
        """Build a layer as `Linear(in_features, out_features, bias=True, device=None, dtype=None)`.

        A layer computes in the dtype of its input, whatever its weights are stored in.
        """
        ...

    @property
    def feed(self) -> Feed | None:
        """Give the maker of packed inputs, if the layers take any."""
        ...

    def hold(self, layers: nn.Module) -> AbstractContextManager[None]:
        """Keep the decoded or moved weights of the layers inside `layers` for the context.

        For layers that are used several times in it.
        """
        ...
