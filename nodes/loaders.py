"""Loaders: model files from lists to ComfyUI's MODEL, CLIP and CLIP_VISION, and to MTK_WAV2VEC2."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..wan_gguf_loader.ops import Precision
from .host import folders, speech, text, vision
from .host.model import load_adapter, load_base
from .sockets import Wav2Vec2

_CATEGORY = "MultiTalk/loaders"


class LoadWan(io.ComfyNode):
    """Load Wan2.1 (GGUF)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_LoadWan",
            display_name="Load Wan2.1 (GGUF)",
            category=_CATEGORY,
            description=(
                "The Wan2.1 image-to-video base, quantised (GGUF) or not (safetensors), as a "
                "native MODEL: LoRA loaders and KSampler work on it."
            ),
            search_aliases=["gguf", "wan", "unet loader", "diffusion model"],
            inputs=[
                io.Combo.Input(
                    "base",
                    options=folders.BASE.choices(),
                    tooltip=(
                        "Wan2.1 I2V 14B, 480P or 720P, from models/diffusion_models or "
                        "models/unet. Q4_K_M takes 11 GB of main memory."
                    ),
                ),
                io.Combo.Input(
                    "precision",
                    options=list(get_args(Precision)),
                    default="exact",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "int8 multiplies the large layers, and those of the adapter, in 8 bits: "
                        "faster, and a little less exact. Needs bfloat16 or float16."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="To Load MultiTalk Adapter, or to KSampler.")],
        )

    @classmethod
    def validate_inputs(cls, base: str | None = None) -> bool | str:
        return folders.BASE.check(base)

    @classmethod
    def execute(cls, base: str, precision: Precision = "exact") -> io.NodeOutput:
        return io.NodeOutput(load_base(folders.BASE.path(base), precision=precision))


class LoadAdapter(io.ComfyNode):
    """Load MultiTalk Adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_LoadAdapter",
            display_name="Load MultiTalk Adapter",
            category=_CATEGORY,
            description=(
                "Adds the audio layers to the base. The base's weights are shared, not copied, and "
                "its LoRAs come along."
            ),
            search_aliases=["multitalk", "infinitetalk", "audio module"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Wan2.1 (GGUF), with or without LoRAs."),
                io.Combo.Input(
                    "adapter",
                    options=folders.ADAPTER.choices(),
                    tooltip=(
                        "multitalk.safetensors or an InfiniteTalk file, in any precision, from "
                        "models/model_patches, models/diffusion_models or models/loras."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="To MultiTalk Sampler or MultiTalk Guider.")],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None) -> bool | str:
        return folders.ADAPTER.check(adapter)

    @classmethod
    def execute(cls, model: object, adapter: str) -> io.NodeOutput:
        return io.NodeOutput(load_adapter(model, folders.ADAPTER.path(adapter)))


class LoadWav2Vec2(io.ComfyNode):
    """Load Wav2Vec2."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_LoadWav2Vec2",
            display_name="Load Wav2Vec2",
            category=_CATEGORY,
            description="The voice encoder MultiTalk was trained with.",
            search_aliases=["audio encoder", "chinese-wav2vec2-base"],
            inputs=[
                io.Combo.Input(
                    "wav2vec2",
                    options=folders.WAV2VEC2.choices(),
                    tooltip=(
                        "chinese-wav2vec2-base as safetensors, from models/audio_encoders or "
                        "models/wav2vec2. Other Wav2Vec2 models load but were not trained for this."
                    ),
                ),
            ],
            outputs=[
                Wav2Vec2.Output(display_name="wav2vec2", tooltip="To MultiTalk Audio Embeds.")
            ],
        )

    @classmethod
    def validate_inputs(cls, wav2vec2: str | None = None) -> bool | str:
        return folders.WAV2VEC2.check(wav2vec2)

    @classmethod
    def execute(cls, wav2vec2: str) -> io.NodeOutput:
        return io.NodeOutput(speech.VoiceEncoder(folders.WAV2VEC2.path(wav2vec2)))


class LoadUMT5(io.ComfyNode):
    """Load UMT5."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_LoadUMT5",
            display_name="Load UMT5",
            category=_CATEGORY,
            description="Wan2.1's text encoder as ComfyUI's CLIP, from safetensors or GGUF.",
            search_aliases=["umt5", "t5", "clip loader", "text encoder"],
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=folders.TEXT_ENCODER.choices(),
                    tooltip=(
                        "umt5_xxl in ComfyUI's packaging, or city96's GGUF, from "
                        "models/text_encoders or models/clip."
                    ),
                ),
            ],
            outputs=[io.Clip.Output(tooltip="To CLIP Text Encode.")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder: str | None = None) -> bool | str:
        return folders.TEXT_ENCODER.check(text_encoder)

    @classmethod
    def execute(cls, text_encoder: str) -> io.NodeOutput:
        path = folders.TEXT_ENCODER.path(text_encoder)
        return io.NodeOutput(text.load_text_encoder(path))


class LoadCLIPVision(io.ComfyNode):
    """Load CLIP Vision."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_LoadCLIPVision",
            display_name="Load CLIP Vision (Wan2.1)",
            category=_CATEGORY,
            description="Wan2.1's picture encoder (CLIP ViT-H) as ComfyUI's CLIP_VISION.",
            search_aliases=["clip vision loader"],
            inputs=[
                io.Combo.Input(
                    "clip_vision",
                    options=folders.CLIP_VISION.choices(),
                    tooltip="clip_vision_h.safetensors, from models/clip_vision.",
                ),
            ],
            outputs=[io.ClipVision.Output(tooltip="To MultiTalk Sampler.")],
        )

    @classmethod
    def validate_inputs(cls, clip_vision: str | None = None) -> bool | str:
        return folders.CLIP_VISION.check(clip_vision)

    @classmethod
    def execute(cls, clip_vision: str) -> io.NodeOutput:
        return io.NodeOutput(vision.load_clip_vision(folders.CLIP_VISION.path(clip_vision)))
