"""The weights files of one run: opened and checked first, then loaded.

Opening reads only headers, so a wrong file is reported within a second, not after minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from itertools import chain
from pathlib import Path

import torch
from transformers import Wav2Vec2Model

from ..multitalk_core.config import ModelConfig
from ..multitalk_core.errors import WeightsError
from ..multitalk_core.files.identify import FileKind, identify, require
from ..multitalk_core.files.sizes import audio_config, model_config
from ..multitalk_core.inputs.features import FOLDED_POSITION, load_wav2vec2, wav2vec2_config
from ..multitalk_core.model.dit import MultiTalkModel
from ..wan_gguf_loader.files import WeightsFile, open_weights
from ..wan_gguf_loader.load import account_for, load_weights
from ..wan_gguf_loader.lora import apply_lora, read_lora
from ..wan_gguf_loader.namings import Part
from ..wan_gguf_loader.ops import GGUFOps, Precision
from .memory import Weights, count_weights, loaded_bytes
from .request import ModelFiles


class OpenFiles:
    """The opened and checked files; loading reads each again.

    Attributes:
        config: Sizes of the transformer with its audio branch.
        vae: The VAE's file.
        text_encoder: UMT5's file.
        clip_vision: The CLIP vision tower's file.
        lora_reports: What each LoRA has changed in the transformer that was loaded, in a line.
    """

    def __init__(self, files: ModelFiles) -> None:
        """Open all headers and check that each file is of the kind that its option needs.

        Raises:
            WeightsError: If a file is of another kind, or two do not fit each other.
            GGUFError: If a file is damaged or missing.
        """
        self._base = _open(files.base, (FileKind.BASE_I2V, FileKind.MERGED), place="--base")
        self._adapter = None
        if files.adapter is not None:
            self._adapter = _open(files.adapter, FileKind.ADAPTER, place="--adapter")
        self._transformer = [file for file in (self._base, self._adapter) if file is not None]
        self._loras = [
            (_open(lora.path, FileKind.LORA, place="--lora"), lora.strength) for lora in files.loras
        ]
        self.lora_reports: list[str] = []
        self._wav2vec2 = _open(
            files.wav2vec2, FileKind.WAV2VEC2, place="--wav2vec", part="wav2vec2"
        )
        self.vae = _open(files.vae, FileKind.VAE, place="--vae", part="vae")
        self.text_encoder = _open(
            files.text_encoder, FileKind.UMT5, place="--text-encoder", part="text_encoder"
        )
        self.clip_vision = _open(
            files.clip_vision, FileKind.CLIP_VISION, place="--clip-vision", part="clip_vision"
        )
        self.config = self._transformer_config()
        self._check_wav2vec2()

    def load_transformer(
        self, dtype: torch.dtype, *, precision: Precision = "exact"
    ) -> MultiTalkModel:
        """Load base, adapter and LoRAs; plain weights wider than `dtype` are rounded to it."""
        model = MultiTalkModel(self.config, ops=GGUFOps(precision=precision), device="meta")
        load_weights(model, self._transformer, dtype=dtype)
        loras = [(read_lora(file, model), strength) for file, strength in self._loras]
        for lora, strength in loras:
            apply_lora(model, lora, strength)
        self.lora_reports = [lora.report(strength) for lora, strength in loras]
        return model.eval()

    def transformer_weights(self, dtype: torch.dtype) -> Weights:
        """Count the bytes that `load_transformer` takes in memory, from the headers."""
        model = [loaded_bytes(file, dtype) for file in self._transformer]
        loras = [loaded_bytes(lora, None) for lora, _ in self._loras]
        return count_weights(chain(*model, *loras))

    def load_wav2vec2(self) -> Wav2Vec2Model:
        """Load Wav2Vec2 in float32."""
        file = self._wav2vec2
        model = load_wav2vec2(file.weights(), num_heads=file.num_heads, source=file.path.name)
        account_for(file, {*model.state_dict(), FOLDED_POSITION})
        return model

    def _transformer_config(self) -> ModelConfig:
        base, adapter = self._base, self._adapter
        config = model_config(base.shapes, num_heads=base.num_heads, source=base.path.name)
        if adapter is None and config.audio is None:
            raise WeightsError(
                f"{base.path.name} has no audio layers. Give the MultiTalk or InfiniteTalk file "
                "with --adapter."
            )
        if adapter is None:
            return config
        if config.audio is not None:
            raise WeightsError(
                f"{base.path.name} has its own audio layers already, and {adapter.path.name} is "
                "an adapter. Give a plain Wan2.1 image-to-video base with --base, or this base "
                "alone."
            )
        audio = audio_config(adapter.shapes, base=config, source=adapter.path.name)
        return dataclasses.replace(config, audio=audio)

    def _check_wav2vec2(self) -> None:
        """Refuse a Wav2Vec2 whose layers the adapter was not made for."""
        file, audio = self._wav2vec2, self.config.audio
        assert audio is not None
        sizes = wav2vec2_config(file.shapes, num_heads=file.num_heads, source=file.path.name)
        audio.check_features(
            sizes.num_hidden_layers,
            sizes.hidden_size,
            encoder=file.path.name,
            adapter=(self._adapter or self._base).path.name,
        )


def _open(
    path: Path,
    wanted: FileKind | Collection[FileKind],
    *,
    place: str,
    part: Part | None = None,
) -> WeightsFile:
    file = open_weights(path, part=part)
    require(identify(file.shapes, file.metadata), wanted, source=path.name, place=place)
    return file
