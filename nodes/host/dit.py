"""The transformer under ComfyUI's calling convention.

Parameter names stay upstream's, so ComfyUI maps LoRA keys to them. One module serves two callers:
ComfyUI's samplers, who pass the condition as channels of `x`, and `generate`, who names it.
"""

from __future__ import annotations

from typing import Any

import comfy.ldm.common_dit
import comfy.model_management
import torch
from torch import Tensor, nn

from ...multitalk_core.config import ModelConfig
from ...multitalk_core.dit import MultiTalkModel
from ...multitalk_core.errors import InputError
from .layers import HostOps

_PATCH = (1, 2, 2)


class HostMultiTalk(MultiTalkModel):
    """Wan2.1 with MultiTalk inside a ComfyUI MODEL.

    Attributes:
        dtype: What it computes in; ComfyUI's `BaseModel` reads it.
        adapter: File its audio branch came from, for messages.
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, adapter: str = "") -> None:
        super().__init__(config, ops=HostOps(), device="meta")
        self.dtype = dtype
        self.adapter = adapter
        for block in self.blocks:
            block.register_forward_pre_hook(_stop_if_interrupted)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        clip_fea: Tensor | None = None,
        *,
        condition: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Predict the velocity, for `generate` or for ComfyUI's samplers.

        Args:
            latents: Noisy latents `(B, 16, F, h, w)`; from ComfyUI `(B, 36, F, h, w)`, the
                condition's 4 mask and 16 picture channels behind the 16 noisy ones.
            timestep: `(B,)`, 0 to 1000.
            context: ComfyUI's text tokens, `(B, L, text_dim)`.
            clip_fea: ComfyUI's picture tokens, `(B, 257, image_dim)`.
            condition: Given by `generate` alone, `(B, 20, F, h, w)`.
            **options: The rest of what `MultiTalkModel.forward` takes, or, from ComfyUI,
                transformer options and conditions of other models.

        Returns:
            Velocity, `(B, 16, F, h, w)`.

        Raises:
            InputError: If an input does not fit; the message says which.
        """
        if condition is not None:
            return super().forward(latents, timestep, condition=condition, **options)
        if context is None or clip_fea is None:
            raise InputError(
                "The conditioning of this image-to-video model has no picture tokens. Encode the "
                "photo with CLIP Vision Encode and connect it to WanImageToVideo."
            )
        height, width = latents.shape[-2:]
        x = comfy.ldm.common_dit.pad_to_patch_size(latents, _PATCH)
        velocity = super().forward(
            x[:, : self.config.out_channels],
            timestep,
            condition=x[:, self.config.out_channels : self.config.in_channels],
            text=context[:, : self.config.text_len],  # as upstream's tokenizer cuts it
            image=clip_fea,
        )
        return velocity[..., :height, :width]


def _stop_if_interrupted(_block: nn.Module, _inputs: Any) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()
