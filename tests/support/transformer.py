"""A small transformer with an audio branch, and inputs for it: quick to run, nothing left out."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from comfyui_multitalk.multitalk_core.config import AudioConfig, ModelConfig
from comfyui_multitalk.multitalk_core.model.dit import MultiTalkModel

ModuleT = TypeVar("ModuleT", bound=nn.Module)

AUDIO = AudioConfig(layers=2, channels=8, hidden_dim=12, num_tokens=3, token_dim=10)
CONFIG = ModelConfig(
    dim=48,
    ffn_dim=64,
    num_heads=3,
    num_layers=2,
    text_dim=20,
    text_len=7,
    image_dim=24,
    freq_dim=16,
    audio=AUDIO,
)


class Inputs(NamedTuple):
    """What one forward pass takes; 3 latent frames of 2 x 3 tokens."""

    latents: Tensor
    timestep: Tensor
    condition: Tensor
    text: Tensor
    image: Tensor
    windows: Tensor
    token_masks: Tensor


def small_model(config: ModelConfig = CONFIG, *, seed: int = 0) -> MultiTalkModel:
    """Build the model with every weight drawn, norms and biases too."""
    return draw_weights(MultiTalkModel(config), seed=seed)


def draw_weights(module: ModuleT, *, seed: int = 0) -> ModuleT:
    """Draw every weight of a module, in eval mode and without gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.eval().requires_grad_(False).parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module


def small_inputs(*, batch: int = 1, speakers: int = 2, seed: int = 1) -> Inputs:
    """Draw inputs that fit `small_model`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    masks = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 0]])
    return Inputs(
        latents=draw(batch, 16, 3, 4, 6),
        timestep=torch.linspace(900, 300, batch),
        condition=draw(batch, 20, 3, 4, 6),
        text=draw(batch, 5, CONFIG.text_dim),
        image=draw(batch, 257, CONFIG.image_dim),
        windows=draw(speakers, 9, 5, AUDIO.layers, AUDIO.channels),
        token_masks=masks,
    )
