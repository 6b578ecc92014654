"""MTK_WAV2VEC2: the Wav2Vec2 encoder under ComfyUI's memory manager."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ...multitalk_core.files.identify import FileKind, identify, require
from ...multitalk_core.inputs.features import FOLDED_POSITION, audio_features, load_wav2vec2
from ...multitalk_core.method.segments import TAIL_FRAMES
from ...wan_gguf_loader.files import open_weights
from ...wan_gguf_loader.load import account_for


class _Wav2Vec2(nn.Module):
    """Wraps the model, because the patcher sets `device`, which transformers' models forbid."""


class VoiceEncoder:
    """A Wav2Vec2 encoder and the name of its file.

    Attributes:
        name: The file's name, for messages.
    """

    def __init__(self, path: Path) -> None:
        with open_weights(path, part="wav2vec2") as file:
            require(
                identify(file.shapes, file.metadata),
                (FileKind.WAV2VEC2,),
                source=path.name,
                place="Load Wav2Vec2",
            )
            self._model = load_wav2vec2(file.weights(), num_heads=file.num_heads, source=path.name)
            account_for(file, {*self._model.state_dict(), FOLDED_POSITION})
        self.name = path.name
        holder = _Wav2Vec2()
        holder.encoder = self._model
        self._patcher = comfy.model_patcher.ModelPatcher(
            holder,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=torch.device("cpu"),
        )

    @property
    def memory(self) -> int:
        """Memory of the device that runs the encoder, in bytes."""
        return int(comfy.model_management.get_total_memory(self._patcher.load_device))

    def features(self, track: Tensor) -> Tensor:
        """Encode a track `(N,)` at 16 kHz and silence after it: layers at 25 Hz, `(T, L, C)`."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        comfy.model_management.load_models_gpu([self._patcher], force_full_load=True)
        heard = audio_features(
            self._model, track.to(self._patcher.load_device), tail_frames=TAIL_FRAMES
        )
        return heard.cpu()
