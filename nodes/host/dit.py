"""The transformer with the interface of ComfyUI's own Wan model.

`BaseModel.apply_model` calls it; audio tokens and token masks are additional conditions. Parameter
names are upstream's, so ComfyUI can map LoRA keys to them.
"""

from __future__ import annotations

from typing import Any

import comfy.ldm.common_dit
import comfy.patcher_extension
import torch
from torch import Tensor

from ...multitalk_core.config import ModelConfig
from ...multitalk_core.errors import InputError
from ...multitalk_core.model.attention import Attend
from ...multitalk_core.model.audio_tokens import AudioContext
from ...multitalk_core.model.dit import MultiTalkModel
from ...wan_gguf_loader.ops import Precision
from .layers import HostOps
from .wan_hooks import wan_hooks

_PATCH = (1, 2, 2)
_WRAPPERS = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
_FOREIGN = ("time_dim_concat", "context_latents")
"""Conditions of other Wan models, which ComfyUI's Wan adds to the video tokens."""


class HostMultiTalk(MultiTalkModel):
    """Wan2.1 with MultiTalk inside a ComfyUI MODEL.

    Attributes:
        dtype: Compute dtype; ComfyUI's `BaseModel` reads it.
        dim: Width; ComfyUI's nodes identify Wan models by it.
        adapter: File name of the audio branch, for messages.
        precision: Precision of the matrix products in the large layers.
        attention: Default attention backend of the video tokens; a node or a flag overrides it.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        precision: Precision,
        attention: Attend,
        adapter: str = "",
    ) -> None:
        super().__init__(config, ops=HostOps(precision=precision), device="meta")
        self.dtype = dtype
        self.dim = config.dim
        self.adapter = adapter
        self.precision = precision
        self.attention = attention

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        clip_fea: Tensor | None = None,
        time_dim_concat: Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Predict the velocity `(B, 16, F, h, w)`, called as ComfyUI calls its Wan model.

        Args:
            latents: Channels of noisy latents (16), mask (4) and photo (16), `(B, 36, F, h, w)`.
            timestep: `(B,)`, 0 to 1000.
            context: Text tokens, `(B, L, text_dim)`.
            clip_fea: CLIP tokens of the photo, `(B, 257, image_dim)`.
            time_dim_concat: A condition of other Wan models; must be `None`.
            transformer_options: Patches and options that nodes have set.
            **conditions: `audio` (audio tokens, or a list of one entry each), `token_masks` and
                `audio_strength`, see `AudioContext`; unknown conditions are ignored.

        Raises:
            InputError: If an input does not fit; the message says which.
        """
        options = transformer_options or {}
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._predict, self, comfy.patcher_extension.get_all_wrappers(_WRAPPERS, options)
        )
        velocity: Tensor = executor.execute(
            latents, timestep, context, clip_fea, time_dim_concat, options, **conditions
        )
        return velocity

    def _predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor | None,
        clip_fea: Tensor | None,
        time_dim_concat: Tensor | None,
        transformer_options: dict[str, Any],
        *,
        audio: Tensor | list[Tensor] | None = None,
        token_masks: Tensor | None = None,
        audio_strength: float = 1.0,
        **conditions: Any,
    ) -> Tensor:
        given = {**conditions, "time_dim_concat": time_dim_concat}
        foreign = [name for name in _FOREIGN if given.get(name) is not None]
        if foreign:
            raise InputError(
                f"The conditioning contains {' and '.join(foreign)}, which only other Wan models "
                "use; this one needs a photo. Make the conditioning with WanImageToVideo."
            )
        if context is None or clip_fea is None:
            raise InputError(
                "The conditioning has no CLIP tokens of the photo, which this model needs. Encode "
                "the photo with CLIP Vision Encode and connect it to WanImageToVideo."
            )
        height, width = latents.shape[-2:]
        x = comfy.ldm.common_dit.pad_to_patch_size(latents, _PATCH)
        split = self.config.out_channels
        contexts = [
            AudioContext(tokens, token_masks, audio_strength)
            for tokens in ([audio] if isinstance(audio, Tensor) else audio or [])
        ]
        velocity = super().forward(
            x[:, :split],
            timestep,
            condition=x[:, split : self.config.in_channels],
            text=context[:, : self.config.text_len],  # the limit of upstream's tokenizer
            image=clip_fea,
            audio=contexts[0] if isinstance(audio, Tensor) else contexts or None,
            hooks=wan_hooks(
                transformer_options, x=x, num_blocks=len(self.blocks), attention=self.attention
            ),
        )
        return velocity[..., :height, :width]
