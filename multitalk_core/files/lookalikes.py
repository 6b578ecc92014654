"""Files that are mistaken for ours: what tells each, as tables for `identify.py`.

Names, shapes and channels are those of the published code of each model, or of the nodes that load
it in ComfyUI. A new lookalike is a new row. Stdlib only.
"""

from __future__ import annotations

from typing import NamedTuple

_ANYTALKER = "an AnyTalker model (another audio method)"
_LONGCAT = "a LongCat-Avatar model (another audio method)"
_S2V = "a Wan2.2-S2V model (another audio method)"
_ANIMATE = "a Wan2.2-Animate model"
_VACE = "a VACE model or module"
_TAE = "a tiny autoencoder for previews (TAE), not the video VAE"


class Mark(NamedTuple):
    """A tensor that tells a lookalike.

    Attributes:
        name: Its name.
        description: What only has such a tensor.
        width: Its last dimension, if other files have a tensor of this name.
    """

    name: str
    description: str
    width: int | None = None


class Base(NamedTuple):
    """A Wan transformer that is no Wan2.1 image-to-video base, told by its shapes.

    Attributes:
        description: What it is.
        channels: Input channels, if they tell it.
        width: Width of its blocks, if that tells it.
        sees: Whether it takes CLIP image tokens, if that tells it.
    """

    description: str
    channels: int | None = None
    width: int | None = None
    sees: bool | None = None


MARKS = (
    Mark("blocks.0.audio_cross_attn.k_face.weight", _ANYTALKER),
    Mark("blocks.0.cross_attn.k_audio.weight", _ANYTALKER),
    Mark("blocks.0.audio_cross_attn.q_norm.weight", _LONGCAT),
    Mark("audio_proj.proj1.weight", _LONGCAT, width=32_000),  # 5 x 5 Whisper layers x 1280
    Mark("audio_proj.audio_proj_glob_1.layer.weight", "a HuMo model (another audio method)"),
    Mark("proj_model.proj.weight", "a FantasyTalking model (another audio method)"),
    Mark("audio_injector.injector.0.k.weight", _S2V),
    Mark("casual_audio_encoder.encoder.final_linear.weight", _S2V),
    Mark("face_adapter.fuser_blocks.0.k_norm.weight", _ANIMATE),
    Mark("pose_patch_embedding.weight", _ANIMATE),
    Mark("patch_embedding_pose.weight", "a SCAIL model, which follows a pose"),
    Mark("vace_blocks.0.self_attn.q.weight", _VACE),
    Mark("vace_patch_embedding.weight", _VACE),
    Mark("control_adapter.conv.weight", "a Wan Fun model with camera control"),
    Mark("ref_conv.weight", "a Wan Fun-Control model with a reference picture"),
    Mark("fps_embedding.weight", "a SkyReels-V2 diffusion-forcing model (DF)"),
    Mark("patch_embedding_global.weight", "a WanDancer model, which follows music"),
    Mark("patch_embedding_fuse.weight", "a SteadyDancer model, which follows a pose"),
    Mark("blocks.0.motion_attn.k.weight", "an MTV-Crafter model, which follows a pose"),
    Mark("blocks.0.cross_attn.emo_k_proj.weight", "a FlashPortrait model, which follows a face"),
    Mark("blocks.0.control_blocks_dense.cross_attn.k.weight", "a LongVie 2 model"),
    Mark("blocks.0.cam_encoder.weight", "a ReCamMaster model"),
    Mark("text_projection.0.weight", "a BindWeave model"),
    Mark("LQ_proj_in.norm1.gamma", "a FlashVSR model, which enlarges videos"),
    Mark("img_emb.emb_pos", "a Wan2.1 first-and-last-frame base (FLF2V)"),
    Mark("model_type.Wan2_1-FLF2V-14B-720P", "a Wan2.1 first-and-last-frame base (FLF2V)"),
    Mark("double_blocks.0.img_attn.qkv.weight", "a Flux or HunyuanVideo transformer"),
    Mark("decoder.22.bias", _TAE),
    Mark("taesd_decoder.1.weight", _TAE),
)
"""In this order; the first that a file has tells it."""

MODEL_TYPES = {
    "animate2": "a Wan-Animate2 model",
    "flow_rvs": "a FlowRVS model, which segments videos",
}
"""Values of `transformer.model_type` in the JSON that ComfyUI reads from safetensors metadata, and
models that only this tells: their tensors are those of Wan2.1."""

ENDINGS = {
    "._data": "quantised by optimum-quanto, a form that is not read here",
    "._weight_qdata": "quantised by torchao, a form that is not read here",
    ".quant_map": "quantised by bitsandbytes, a form that is not read here",
    ".SCB": "quantised by bitsandbytes, a form that is not read here",
    ".smooth_factor": "quantised by SVDQuant (Nunchaku), a form that is not read here",
    ".qweight": "quantised by GPTQ or AWQ, a form that is not read here",
    ".weight_int8": "an int8 LongCat-Avatar model (another audio method)",
}
"""Endings of tensor names, and what only has such; the first that a file has tells it."""

BASES = (
    Base("a Wan2.2 5B model", width=3072),
    Base("a Wan2.1 or Wan2.2 text-to-video base (T2V)", channels=16),
    Base("a Wan2.1 Fun-Control model", channels=48),
    Base("a Wan2.2 Fun-Control model", channels=52),
    Base("a Wan2.2 image-to-video base (A14B), which has no CLIP vision", channels=36, sees=False),
)
"""In this order; the first that fits tells it."""

OTHER_ENCODERS = {
    "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5 text encoder, not UMT5",
    "encoder.layers.0.fc1.weight": "a Whisper or another speech model, not Wav2Vec2",
}
"""Tensors that tell encoders of other models."""

OTHER_VAES = {48: "the Wan2.2 5B video VAE (48 channels), not Wan2.1's"}
"""Video VAEs by latent channels."""

PRUNED_VAES = {24: "LightVAE, a Wan2.1 video VAE of a quarter of the width: faster, less exact"}
"""Video VAEs that decode for Wan2.1, by the channels of their last layer."""
