"""Model files: the choices of a node's list, their folders, and the message for a missing one.

ComfyUI's own lists leave out .gguf and include pickles. Ours use the same directories, those of
`extra_model_paths.yaml` included, under keys of our own; ComfyUI's lists are not changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ...multitalk_core.errors import InputError

EXTENSIONS = frozenset({".gguf", ".safetensors", ".sft"})
_TINY = Path(__file__).resolve().parents[2] / "models" / "tiny"
_TINY_VAE = _TINY / "vae"
_TINY_PREFIX = "tiny/"
"""Marks, in a list, the file of the tiny trained set that comes with the pack."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """One kind of model file.

    Attributes:
        key: Our name for it in `folder_paths`.
        sources: ComfyUI's names of its directories; new files belong in the first.
        what: What it is, for messages.
        file: The file most users want.
        repository: Where to get it.
        tiny: The file of the tiny trained set, which the pack brings along; None if it has none.
    """

    key: str
    sources: tuple[str, ...]
    what: str
    file: str
    repository: str
    tiny: str | None = None

    def choices(self) -> list[str]:
        """List the user's files, or a hint if there are none, and then the tiny set's file."""
        self._register()
        own = list(folder_paths.get_filename_list(self.key)) or [self._hint()]
        return [*own, *self._brought()]

    def path(self, name: str) -> Path:
        """Give the full path of a listed file.

        Raises:
            InputError: If it is not there; the message says which to get and where to put it.
        """
        if name in self._brought():
            return _TINY / name.removeprefix(_TINY_PREFIX)
        self._register()
        found = folder_paths.get_full_path(self.key, name)
        if found is None or name not in folder_paths.get_filename_list(self.key):
            raise InputError(self.missing(name))
        return Path(found)

    def check(self, name: str | None) -> bool | str:
        """Validate a chosen name for ComfyUI: `True`, or what is wrong."""
        self._register()
        listed = (*folder_paths.get_filename_list(self.key), *self._brought())
        if name is None or name in listed:  # None: linked
            return True
        return self.missing(name)

    def missing(self, name: str) -> str:
        """Build the message for a missing file: which one to get, and where to put it."""
        folders = folder_paths.folder_names_and_paths[self.key][0]
        there = folder_paths.get_filename_list(self.key)
        subject = f"'{name}' is not there" if name != self._hint() else f"There is no {self.what}"
        stock = (
            f"; there {'is' if len(there) == 1 else 'are'} {', '.join(there[:8])}" if there else ""
        )
        return (
            f"{subject}{stock}. Get {self.file} from https://huggingface.co/{self.repository}, "
            f"put it into {folders[0]}, and press R to refresh the lists."
        )

    def _brought(self) -> list[str]:
        return [] if self.tiny is None else [_TINY_PREFIX + self.tiny]

    def _hint(self) -> str:
        return f"no file: get {self.file} from {self.repository}"

    def _register(self) -> None:
        """Point our key at ComfyUI's current directories; other packs may add some at any time."""
        folders: list[str] = []
        for source in self.sources:
            default = [str(Path(folder_paths.models_dir) / source)]
            known = folder_paths.folder_names_and_paths.get(source, (default,))[0]
            # ComfyUI lists 'unet' before 'diffusion_models'; new files belong in the latter.
            own = [folder for folder in known if Path(folder).name == source]
            folders += [
                folder
                for folder in (*own, *known)
                if folder not in folders and Path(folder) != _TINY_VAE
            ]
        folder_paths.folder_names_and_paths[self.key] = (folders, set(EXTENSIONS))


def offer_tiny_vae() -> None:
    """Let ComfyUI's Load VAE list the tiny set's autoencoder."""
    folder_paths.add_model_folder_path("vae", str(_TINY_VAE))


BASE = ModelFolder(
    key="mtk_base",
    sources=("diffusion_models",),
    what="Wan2.1 image-to-video base",
    file="wan2.1-i2v-14b-480p-Q4_K_M.gguf",
    repository="city96/Wan2.1-I2V-14B-480P-gguf",
    tiny="wan_tiny_i2v_Q8_0.gguf",
)
ADAPTER = ModelFolder(
    key="mtk_adapter",
    sources=("model_patches", "diffusion_models", "loras"),
    what="MultiTalk adapter",
    file="multitalk.safetensors",
    repository="MeiGen-AI/MeiGen-MultiTalk",
    tiny="multitalk_tiny.safetensors",
)
LORA = ModelFolder(
    key="mtk_lora",
    sources=("loras",),
    what="LoRA of Wan2.1",
    file="lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors",
    repository="Kijai/WanVideo_comfy/tree/main/Lightx2v",
)
WAV2VEC2 = ModelFolder(
    key="mtk_wav2vec2",
    sources=("audio_encoders", "wav2vec2"),
    what="Wav2Vec2 voice encoder",
    file="wav2vec2-chinese-base_fp16.safetensors",
    repository="Kijai/wav2vec2_safetensors",
    tiny="wav2vec2_tiny.safetensors",
)
TEXT_ENCODER = ModelFolder(
    key="mtk_text_encoder",
    sources=("text_encoders",),
    what="UMT5 text encoder",
    file="umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    repository="Comfy-Org/Wan_2.1_ComfyUI_repackaged",
    tiny="umt5_tiny.safetensors",
)
CLIP_VISION = ModelFolder(
    key="mtk_clip_vision",
    sources=("clip_vision",),
    what="CLIP vision encoder",
    file="clip_vision_h.safetensors",
    repository="Comfy-Org/Wan_2.1_ComfyUI_repackaged",
    tiny="clip_vision_tiny.safetensors",
)
VAE = ModelFolder(
    key="mtk_vae",
    sources=("vae",),
    what="Wan2.1 VAE",
    file="wan_2.1_vae.safetensors",
    repository="Comfy-Org/Wan_2.1_ComfyUI_repackaged",
    tiny="vae/wan_vae_tiny.safetensors",
)
