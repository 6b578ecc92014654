"""ComfyUI's encoders on our files: as the libraries of the command line have them, and refusals.

Tokens and latents are compared by relative norm in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.t5
import comfy.text_encoders.wan
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS
from safetensors.torch import load_file, save_file

from comfyui_multitalk.dev.parity.pack import GOLDEN, unpack
from comfyui_multitalk.multitalk_core.errors import InputError, WeightsError
from comfyui_multitalk.multitalk_core.files.sizes import umt5_sizes
from comfyui_multitalk.nodes.host import folders, speech, text, vae, vision
from comfyui_multitalk.nodes.host.session import Session
from comfyui_multitalk.nodes.loaders import LoadVAE
from comfyui_multitalk.standalone import encoders
from comfyui_multitalk.tests.host.inside.scene import CPU, PROMPT, TINY, Scene, distance
from comfyui_multitalk.tests.support import spellings
from comfyui_multitalk.tests.support.once import one_at_a_time
from comfyui_multitalk.tests.support.umt5_gguf import write_gguf_text_encoder
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
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


@pytest.mark.parametrize("pack", [spellings.scaled_fp8, spellings.int8], ids=["fp8", "int8"])
def test_scaled_text_encoder_stays_packed_and_gives_what_comfyui_gives(
    tmp_path: Path, pack: spellings.Spell
) -> None:
    path, plain = tmp_path / "umt5.safetensors", tmp_path / "plain.safetensors"
    weights = pack(load_file(TINY.text_encoder))
    save_file(weights, path)
    save_file(spellings.decoded(weights), plain)
    clip = text.load_text_encoder(path)
    layers = clip.cond_stage_model.umt5xxl.transformer.encoder.block[0].layer
    assert layers[0].SelfAttention.q.weight.dtype is torch.uint8
    assert distance(encode(clip), encode(text.load_text_encoder(plain))) < 1e-6
    if pack is spellings.scaled_fp8 or "int8_tensorwise" in QUANT_ALGOS:  # newer than ComfyUI 0.23
        assert distance(encode(clip), encode(comfyuis_own(path))) < 1e-5


def test_text_encoder_in_plain_float8_gives_its_decoded_values(tmp_path: Path) -> None:
    weights = spellings.plain_fp8(load_file(TINY.text_encoder))
    save_file(weights, tmp_path / "eight.safetensors")
    save_file(spellings.decoded(weights), tmp_path / "plain.safetensors")
    eight, plain = (
        encode(text.load_text_encoder(tmp_path / f"{name}.safetensors"))
        for name in ("eight", "plain")
    )
    assert torch.equal(eight, plain)


def comfyuis_own(path: Path) -> Any:
    """ComfyUI's layers and its reading of scales; its loader takes only the full size."""
    weights, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    weights, _ = comfy.utils.convert_old_quants(weights, metadata=metadata)
    with open_weights(path) as file:
        sizes = asdict(umt5_sizes(file.shapes, source=path.name))
    config = {"model_type": "umt5", "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True}
    encoder = partial(
        comfy.sd1_clip.SDClipModel,
        layer="last",
        textmodel_json_config=config | sizes,
        special_tokens={"end": 1, "pad": 0},
        model_class=comfy.text_encoders.t5.T5,
        enable_attention_masks=True,
        zero_out_masked=True,
    )
    model = partial(comfy.sd1_clip.SD1ClipModel, name="umt5xxl", clip_model=encoder)
    return comfy.sd.CLIP(
        SimpleNamespace(clip=model, tokenizer=comfy.text_encoders.wan.WanT5Tokenizer, params={}),
        tokenizer_data={"spiece_model": weights["spiece_model"]},
        state_dict=[weights],
        model_options={
            "dtype": torch.float16,
            "quantization_metadata": comfy.utils.detect_layer_quantization(weights, ""),
        },
    )


def test_text_encoder_in_wans_names_with_its_tokenizer_beside_it_is_the_same(
    scene: Scene, tmp_path: Path
) -> None:
    weights = load_file(TINY.text_encoder)
    save_file(spellings.wan_umt5(weights), tmp_path / "umt5-xxl-enc-bf16.safetensors")
    (tmp_path / "spiece.model").write_bytes(weights["spiece_model"].numpy().tobytes())
    clip = text.load_text_encoder(tmp_path / "umt5-xxl-enc-bf16.safetensors")
    assert torch.equal(encode(clip), encode(scene.clip))


@pytest.mark.parametrize(
    "spell",
    [spellings.open_clip, spellings.wan_clip, spellings.hugging_face_clip, spellings.bare_clip],
    ids=["open_clip", "wan", "hugging_face", "bare"],
)
def test_picture_encoder_in_every_spelling_is_the_same(
    scene: Scene, tmp_path: Path, spell: spellings.Spell
) -> None:
    path = tmp_path / "clip.safetensors"
    save_file(spell(load_file(TINY.clip_vision)), path, metadata={"num_heads": "4"})
    clip = vision.load_clip_vision(path)
    image = scene.photo.movedim(-1, 1) * 2 - 1
    expected = vision.encode_picture(scene.clip_vision, image)
    assert torch.equal(vision.encode_picture(clip, image), expected)
    if spell is not spellings.bare_clip:  # which has no projection
        ours, theirs = (one.encode_image(scene.photo) for one in (clip, scene.clip_vision))
        assert torch.equal(ours.image_embeds, theirs.image_embeds)


def test_picture_encoder_without_its_final_norm_gives_the_same_tokens_and_says_so(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = load_file(TINY.clip_vision)
    weights = {name: value for name, value in weights.items() if "post_layernorm" not in name}
    save_file(weights, tmp_path / "clip.safetensors", metadata={"num_heads": "4"})
    clip = vision.load_clip_vision(tmp_path / "clip.safetensors")
    assert "clip.safetensors has no final norm" in caplog.text
    image = scene.photo.movedim(-1, 1) * 2 - 1
    expected = vision.encode_picture(scene.clip_vision, image)
    assert torch.equal(vision.encode_picture(clip, image), expected)


def test_scaled_picture_encoder_gives_its_decoded_values(scene: Scene, tmp_path: Path) -> None:
    scaled = spellings.scaled_fp8(load_file(TINY.clip_vision))
    found = []
    for name, weights in (("scaled", scaled), ("plain", spellings.decoded(scaled))):
        path = tmp_path / f"{name}.safetensors"
        save_file(weights, path, metadata={"num_heads": "4"})
        image = scene.photo.movedim(-1, 1) * 2 - 1
        found.append(vision.encode_picture(vision.load_clip_vision(path), image))
    assert torch.equal(*found)


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


@pytest.mark.parametrize(
    "spell",
    [
        spellings.prefixed("model."),
        spellings.prefixed("first_stage_model."),
        spellings.diffusers_vae,
    ],
    ids=["model", "first_stage_model", "diffusers"],
)
def test_vae_that_comfyui_refuses_is_loaded_by_ours(tmp_path: Path, spell: spellings.Spell) -> None:
    weights = load_file(TINY.vae)
    path = tmp_path / "vae.safetensors"
    save_file(spell(weights), path)
    with pytest.raises((RuntimeError, ValueError)):
        comfy.sd.VAE(load_file(path)).throw_exception_if_invalid()
    ours, theirs = vae.load_vae(path), comfy.sd.VAE(weights)
    pixels = torch.rand(5, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    latents = theirs.encode(pixels)
    assert torch.equal(ours.encode(pixels), latents)
    assert torch.equal(ours.decode(latents), theirs.decode(latents))


def test_tiny_vae_is_listed_once_and_loads() -> None:
    folders.offer_tiny_vae()
    assert [name for name in folders.VAE.choices() if "tiny" in name] == [
        "tiny/vae/wan_vae_tiny.safetensors"
    ]
    assert LoadVAE.validate_inputs("tiny/vae/wan_vae_tiny.safetensors") is True
    loaded = LoadVAE.execute("tiny/vae/wan_vae_tiny.safetensors").args[0]
    assert (loaded.latent_channels, loaded.latent_dim) == (16, 3)


@pytest.mark.parametrize("cut", ["encoder.middle.0.residual.2.bias", "encoder.conv1.weight"])
def test_incomplete_vae_is_refused_by_its_name(tmp_path: Path, cut: str) -> None:
    weights = load_file(TINY.vae)
    del weights[cut]
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=r"^part\.safetensors "):
        vae.load_vae(tmp_path / "part.safetensors")


def test_vae_of_another_kind_is_refused_with_the_fix(scene: Scene, adapted: Any) -> None:
    with pytest.raises(InputError, match=r"Load wan_2\.1_vae\.safetensors"):
        Session(adapted, vae=scene.clip_vision, clip_vision=scene.clip_vision)


@pytest.mark.parametrize(
    ("source", "load", "layer"),
    [
        (TINY.text_encoder, text.load_text_encoder, "encoder.block.0.layer.0.SelfAttention.q"),
        (TINY.clip_vision, vision.load_clip_vision, "vision_model.encoder.layers.0.mlp.fc1"),
        (TINY.wav2vec2, speech.VoiceEncoder, "wav2vec2.encoder.layers.0.attention.q_proj"),
        (TINY.vae, vae.load_vae, "conv1"),
    ],
    ids=["text", "picture", "voice", "vae"],
)
def test_scale_of_an_unknown_name_is_refused(
    tmp_path: Path, source: Path, load: Callable[[Path], Any], layer: str
) -> None:
    weights = load_file(source) | {f"{layer}.rescale": torch.tensor(0.5)}
    save_file(weights, tmp_path / "odd.safetensors", metadata={"num_heads": "4"})
    with pytest.raises(GGUFError, match=r"^odd\.safetensors: .*rescale.*would be wrong"):
        load(tmp_path / "odd.safetensors")


def test_empty_list_says_what_to_get_and_where_to_put_it() -> None:
    file, repository = "wav2vec2-chinese-base_fp16.safetensors", "Kijai/wav2vec2_safetensors"
    hint, _tiny = folders.WAV2VEC2.choices()
    assert hint == f"no file: get {file} from {repository}"
    said = str(folders.WAV2VEC2.check(hint))
    for part in (file, repository, f"{folder_paths.base_path}/models/audio_encoders"):
        assert part in said
