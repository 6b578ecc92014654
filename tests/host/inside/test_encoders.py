"""ComfyUI's encoders on our files: as the libraries of the command line have them, and refusals.

Tokens and latents are compared by relative norm in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyui_multitalk.dev.parity.pack import GOLDEN, unpack
from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.nodes.host import folders, text, vision
from comfyui_multitalk.nodes.host.session import Session
from comfyui_multitalk.standalone import encoders
from comfyui_multitalk.tests.host.inside.scene import CPU, PROMPT, TINY, Scene, distance
from comfyui_multitalk.tests.support.once import one_at_a_time
from comfyui_multitalk.tests.support.umt5_gguf import write_gguf_text_encoder
from comfyui_multitalk.wan_gguf_loader.files import open_weights


def encode(clip: Any) -> torch.Tensor:
    """Encode the prompt as CLIP Text Encode does."""
    tokens: torch.Tensor = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0][0]
    return tokens


def test_text_encoder_matches_transformers(scene: Scene) -> None:
    with open_weights(TINY.text_encoder) as file:
        encoder = encoders.load_text_encoder(file, device=CPU, dtype=torch.float32)
    (theirs,), ours = encoder.encode([PROMPT]), encode(scene.clip)
    length = theirs.shape[1]
    assert length > 5
    assert distance(ours[:, :length], theirs) < 1e-5
    assert not ours[:, length:].any()  # the padding ComfyUI adds


def test_text_encoder_from_gguf_keeps_tokens_and_nearly_the_values(
    scene: Scene, tmp_path: Path
) -> None:
    write_gguf_text_encoder(tmp_path / "umt5.gguf", TINY.text_encoder)
    packed = text.load_text_encoder(tmp_path / "umt5.gguf")
    odd = f"{PROMPT}  \uff26\uff55ll width, \xbd \xe9migr\xe9; \u65e5\u672c"
    ours, expected = (clip.tokenize(odd)["umt5xxl"] for clip in (packed, scene.clip))
    assert ours == expected
    layers = packed.cond_stage_model.umt5xxl.transformer.encoder.block[0].layer
    assert layers[0].SelfAttention.q.weight.dtype is torch.uint8
    assert 0 < distance(encode(packed), encode(scene.clip)) < 0.02  # Q8_0 against fp16


def test_text_encoder_in_scaled_float8_is_nearly_the_same(scene: Scene, tmp_path: Path) -> None:
    weights = comfy.utils.load_torch_file(str(TINY.text_encoder))
    scaled = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, value in weights.items():
        if (".SelfAttention." in name or ".DenseReluDense." in name) and "bias" not in name:
            scale = value.float().abs().max() / 448
            scaled[name.replace(".weight", ".scale_weight")] = scale
            value = (value.float() / scale).to(torch.float8_e4m3fn)
        scaled[name] = value
    save_file(scaled, tmp_path / "umt5_fp8_scaled.safetensors")
    eight = text.load_text_encoder(tmp_path / "umt5_fp8_scaled.safetensors")
    assert 0 < distance(encode(eight), encode(scene.clip)) < 0.1


def test_picture_encoder_matches_transformers_without_a_crop(scene: Scene) -> None:
    image = scene.photo.movedim(-1, 1) * 2 - 1
    with open_weights(TINY.clip_vision) as file:
        encoder = encoders.load_image_encoder(file, device=CPU, dtype=torch.float32)
    ours = vision.encode_picture(scene.clip_vision, image)
    assert ours.shape[:2] == (1, 257)
    assert distance(ours, encoder.encode(image)) < 1e-5
    cropped = scene.clip_vision.encode_image(scene.photo).penultimate_hidden_states
    assert distance(ours, cropped) > 0.01  # the photo is not square


def test_vae_gives_the_normalised_latents_of_the_official_code(scene: Scene, adapted: Any) -> None:
    with one_at_a_time("golden"):
        unpack(GOLDEN)
    tensors = load_file(GOLDEN / "vae_tiny.safetensors")
    cases = ("in.", "out.", "const.")
    weights = {name: value for name, value in tensors.items() if not name.startswith(cases)}
    session = Session(adapted, vae=comfy.sd.VAE(weights), clip_vision=scene.clip_vision)
    for case in ("a", "b"):
        latents = session.vae.encode(tensors[f"in.{case}.video"][None])
        assert distance(latents[0], tensors[f"out.{case}.encode"]) < 1e-4
        decoded = session.vae.decode(latents)
        assert distance(decoded[0], tensors[f"out.{case}.decode"]) < 1e-4


def test_vae_of_another_kind_is_refused_with_the_fix(scene: Scene, adapted: Any) -> None:
    with pytest.raises(InputError, match=r"Load wan_2\.1_vae\.safetensors"):
        Session(adapted, vae=scene.clip_vision, clip_vision=scene.clip_vision)


def test_empty_list_says_what_to_get_and_where_to_put_it() -> None:
    file, repository = "wav2vec2-chinese-base_fp16.safetensors", "Kijai/wav2vec2_safetensors"
    hint, _tiny = folders.WAV2VEC2.choices()
    assert hint == f"no file: get {file} from {repository}"
    said = str(folders.WAV2VEC2.check(hint))
    for part in (file, repository, f"{folder_paths.base_path}/models/audio_encoders"):
        assert part in said
