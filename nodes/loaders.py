"""Loader nodes: they load a model file as MODEL, CLIP, CLIP_VISION, VAE or MTK_WAV2VEC2."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..wan_gguf_loader.ops import Precision
from .host import folders, speech, text, vision
from .host.lora_file import load_lora
from .host.model import load_adapter, load_base
from .host.vae import load_vae
from .sockets import Wav2Vec2

_CATEGORY = "MultiTalk/loaders"


def _file(name: str, folder: folders.ModelFolder, tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(name, options=folder.choices(), tooltip=tooltip)


class LoadWan(io.ComfyNode):
    """Load Wan2.1 (GGUF)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_LoadWan",
            display_name="Load Wan2.1 (GGUF)",
            category=_CATEGORY,
            description=(
                "Loads the Wan2.1 image-to-video base model from a GGUF or safetensors file. The "
                "result is a normal MODEL: LoRA loaders, model patches and KSampler work with it."
            ),
            search_aliases=["gguf", "wan", "unet loader", "diffusion model"],
            inputs=[
                _file(
                    "base",
                    folders.BASE,
                    "A Wan2.1 I2V 14B file (480P or 720P) in models/diffusion_models or "
                    "models/unet. Q4_K_M needs 11 GB of main memory.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(get_args(Precision)),
                    default="exact",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "exact: the normal precision. int8: the large layers of base and adapter "
                        "multiply in 8-bit integers, which is faster and slightly less accurate. "
                        "int8 requires bfloat16 or float16."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The base model, for Load MultiTalk Adapter or KSampler.")
            ],
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
                "Adds MultiTalk's audio layers to the base model. The new MODEL shares the base's "
                "weights and keeps its LoRAs."
            ),
            search_aliases=["multitalk", "infinitetalk", "audio module"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The base model, from Load Wan2.1 (GGUF) or a LoRA loader."
                ),
                _file(
                    "adapter",
                    folders.ADAPTER,
                    "multitalk.safetensors or an InfiniteTalk file of any precision, in "
                    "models/model_patches, models/diffusion_models or models/loras.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model with audio layers, for MultiTalk Sampler or Guider."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None) -> bool | str:
        return folders.ADAPTER.check(adapter)

    @classmethod
    def execute(cls, model: object, adapter: str) -> io.NodeOutput:
        return io.NodeOutput(load_adapter(model, folders.ADAPTER.path(adapter)))


class LoadLora(io.ComfyNode):
    """Load LoRA (Wan2.1)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_LoadLora",
            display_name="Load LoRA (Wan2.1)",
            category=_CATEGORY,
            description=(
                "Adds a LoRA of Wan2.1 to the model, as the multitalk command does. Reads every "
                "key style, DoRA, LoHa and LoKr, and says what was applied. Several of these nodes "
                "in a row add up."
            ),
            search_aliases=["lora loader", "lora model only", "dora", "loha", "lokr", "lightx2v"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model, from Load Wan2.1 (GGUF) or Load MultiTalk Adapter.",
                ),
                io.Combo.Input(
                    "lora",
                    options=folders.LORA.choices(),
                    tooltip="A LoRA file of Wan2.1 14B, in models/loras.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="Factor on the whole LoRA: 1 is as it was trained, 0 changes nothing.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the LoRA."),
                io.String.Output(
                    display_name="report",
                    tooltip="The file, its layers by kind, the strength, and what was left out.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None) -> bool | str:
        return folders.LORA.check(lora)

    @classmethod
    def execute(cls, model: object, lora: str, strength: float) -> io.NodeOutput:
        return io.NodeOutput(*load_lora(model, folders.LORA.path(lora), strength=strength))


class LoadWav2Vec2(io.ComfyNode):
    """Load Wav2Vec2."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_LoadWav2Vec2",
            display_name="Load Wav2Vec2",
            category=_CATEGORY,
            description="Loads the voice encoder that MultiTalk was trained with.",
            search_aliases=["audio encoder", "chinese-wav2vec2-base"],
            inputs=[
                _file(
                    "wav2vec2",
                    folders.WAV2VEC2,
                    "chinese-wav2vec2-base as safetensors, in models/audio_encoders or "
                    "models/wav2vec2. Other Wav2Vec2 models of this size load too, but "
                    "MultiTalk was not trained with them.",
                )
            ],
            outputs=[
                Wav2Vec2.Output(
                    display_name="wav2vec2",
                    tooltip="The voice encoder, for MultiTalk Audio Embeds.",
                )
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
            description="Loads Wan2.1's text encoder from a safetensors or GGUF file.",
            search_aliases=["umt5", "t5", "clip loader", "text encoder"],
            inputs=[
                _file(
                    "text_encoder",
                    folders.TEXT_ENCODER,
                    "umt5_xxl as safetensors (by Comfy-Org or Kijai) or GGUF (by city96), "
                    "in models/text_encoders or models/clip. Kijai's files need spiece.model "
                    "of google/umt5-xxl beside them.",
                )
            ],
            outputs=[io.Clip.Output(tooltip="The text encoder, for CLIP Text Encode.")],
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
            description="Loads Wan2.1's image encoder (CLIP ViT-H).",
            search_aliases=["clip vision loader"],
            inputs=[
                _file(
                    "clip_vision",
                    folders.CLIP_VISION,
                    "clip_vision_h.safetensors or another file of CLIP ViT-H, such as Kijai's "
                    "open-clip file, in models/clip_vision.",
                )
            ],
            outputs=[io.ClipVision.Output(tooltip="The image encoder, for MultiTalk Sampler.")],
        )

    @classmethod
    def validate_inputs(cls, clip_vision: str | None = None) -> bool | str:
        return folders.CLIP_VISION.check(clip_vision)

    @classmethod
    def execute(cls, clip_vision: str) -> io.NodeOutput:
        return io.NodeOutput(vision.load_clip_vision(folders.CLIP_VISION.path(clip_vision)))


class LoadVAE(io.ComfyNode):
    """Load VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MTK_LoadVAE",
            display_name="Load VAE (Wan2.1)",
            category=_CATEGORY,
            description=(
                "Loads Wan2.1's video autoencoder from files that ComfyUI's Load VAE refuses: "
                "diffusers' names, names with a prefix such as model., scaled FP8, GGUF."
            ),
            search_aliases=["vae loader", "wan vae"],
            inputs=[
                io.Combo.Input(
                    "vae",
                    options=folders.VAE.choices(),
                    tooltip="A Wan2.1 VAE of any packaging, in models/vae.",
                ),
            ],
            outputs=[
                io.Vae.Output(tooltip="The video autoencoder, for MultiTalk Sampler or VAE Decode.")
            ],
        )

    @classmethod
    def validate_inputs(cls, vae: str | None = None) -> bool | str:
        return folders.VAE.check(vae)

    @classmethod
    def execute(cls, vae: str) -> io.NodeOutput:
        return io.NodeOutput(load_vae(folders.VAE.path(vae)))
