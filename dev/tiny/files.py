"""Names of a tiny set's files; importing it needs nothing but Python."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class TinySet(NamedTuple):
    """Paths of a tiny set's files."""

    folder: Path

    @property
    def base(self) -> Path:
        """Wan2.1 image-to-video transformer, GGUF of mixed types."""
        return self.folder / "wan_tiny_i2v_Q4_K_M.gguf"

    @property
    def adapter(self) -> Path:
        """MultiTalk's audio branch, bf16."""
        return self.folder / "multitalk_tiny.safetensors"

    @property
    def lora(self) -> Path:
        """A LoRA for the base, PEFT names, bf16."""
        return self.folder / "lora_tiny.safetensors"

    @property
    def wav2vec2(self) -> Path:
        """Wav2Vec2, fp16."""
        return self.folder / "wav2vec2_tiny.safetensors"

    @property
    def vae(self) -> Path:
        """Wan2.1 video autoencoder, original names, bf16."""
        return self.folder / "wan_vae_tiny.safetensors"

    @property
    def text_encoder(self) -> Path:
        """UMT5 encoder with its tokenizer, fp16."""
        return self.folder / "umt5_tiny.safetensors"

    @property
    def clip_vision(self) -> Path:
        """CLIP vision tower, fp16."""
        return self.folder / "clip_vision_tiny.safetensors"

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        weights = (self.base, self.adapter, self.lora, self.wav2vec2, self.vae)
        return (*weights, self.text_encoder, self.clip_vision)


class TrainedSet(TinySet):
    """Where the files of a trained set lie: no LoRA; the VAE in a folder that ComfyUI can list."""

    @property
    def base(self) -> Path:
        """Wan2.1 image-to-video transformer, Q8_0."""
        return self.folder / "wan_tiny_i2v_Q8_0.gguf"

    @property
    def vae(self) -> Path:
        """Wan2.1 video autoencoder, original names, fp16."""
        return self.folder / "vae" / "wan_vae_tiny.safetensors"

    @property
    def voices(self) -> Path:
        """Pieces of the voices that were not in the training."""
        return self.folder / "voices.npz"

    @property
    def files(self) -> tuple[Path, ...]:
        """All weights."""
        weights = (self.base, self.adapter, self.wav2vec2, self.vae)
        return (*weights, self.text_encoder, self.clip_vision)
