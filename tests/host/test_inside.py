"""What the bridge promises, measured inside ComfyUI: a native MODEL, LoRA on bytes, encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from comfyui_multitalk.standalone.vae import load_vae
from comfyui_multitalk.wan_gguf_loader.files import open_weights

if TYPE_CHECKING:
    from comfyui_multitalk.tests.support.tiny import TinySet

pytestmark = pytest.mark.host

Measured = dict[str, Any]


def test_model_in_ksampler_matches_comfyuis_own_wan(measured: Measured) -> None:
    assert measured["model"]["against_comfyui"] < 1e-4  # relative norm in float32, 3 steps


def test_model_holds_packed_bytes(measured: Measured) -> None:
    assert measured["model"]["packed_dtype"] == "torch.uint8"


def test_adapter_without_audio_is_the_base(measured: Measured) -> None:
    assert measured["model"]["adapter_without_audio"] == 0


def test_adapter_shares_the_bases_memory(measured: Measured) -> None:
    assert measured["model"]["adapter_shares"]


def test_model_of_another_loader_is_refused_with_the_fix(measured: Measured) -> None:
    assert "Load the base with Load Wan2.1 (GGUF)" in measured["model"]["foreign_model"]


def test_int8_layers_are_those_of_the_command(measured: Measured) -> None:
    assert measured["int8"]["as_the_command"]
    assert 0.001 < measured["int8"]["off_from_exact"] < 0.02


def test_int8_of_the_base_is_that_of_the_adapter_too(measured: Measured) -> None:
    assert measured["int8"]["adapter_too"] == "int8"


def test_int8_layers_are_given_tensors_which_bypass_loras_read(measured: Measured) -> None:
    assert not measured["int8"]["feed"]


def test_int8_is_refused_where_comfyui_computes_in_float32(measured: Measured) -> None:
    assert "Choose the precision exact" in measured["int8"]["refused"]


def test_lora_on_packed_weights_equals_lora_on_decoded_ones(measured: Measured) -> None:
    lora = measured["lora"]
    assert lora["patched"] > 0
    assert lora["effect"] > 0.01
    assert lora["against_comfyui"] < 1e-4


def test_lora_leaves_the_bytes_and_is_removed_without_a_trace(measured: Measured) -> None:
    lora = measured["lora"]
    assert lora["bytes_unchanged"]
    assert lora["restored"]


def test_lora_of_strength_zero_changes_nothing(measured: Measured) -> None:
    assert measured["lora"]["strength_zero"]


def test_lora_comes_along_to_the_adapters_model(measured: Measured) -> None:
    assert measured["lora"]["adapter_carries"] < 1e-6


def test_safetensors_base_and_its_lora_match_comfyuis_own_wan(measured: Measured) -> None:
    plain = measured["plain"]
    assert plain["against_packed"] < 1e-4  # the same weights, decoded
    assert plain["lora_against_comfyui"] < 1e-4
    assert plain["restored"]
    assert plain["weights_restored"]


def test_lora_acts_the_same_when_memory_is_low(measured: Measured) -> None:
    low_vram = measured["lora"]["low_vram"]
    assert low_vram["low"]  # else it was loaded whole
    assert low_vram["partly"] < 1e-6
    assert low_vram["freed"] < 1e-6


def test_interrupt_stops_between_two_blocks(measured: Measured) -> None:
    interrupt = measured["interrupt"]
    assert interrupt["stopped"]
    assert interrupt["ended"] == 1 < interrupt["blocks"]


def test_text_encoder_matches_transformers(measured: Measured) -> None:
    text = measured["text"]
    assert text["tokens"] > 5
    assert text["against_transformers"] < 1e-5
    assert text["rest"] == 0  # the padding ComfyUI adds


def test_text_encoder_from_gguf_keeps_tokens_and_nearly_the_values(measured: Measured) -> None:
    text = measured["text"]
    assert text["gguf_tokens_equal"]
    assert text["gguf_packed"] == "torch.uint8"
    assert 0 < text["gguf"] < 0.02  # Q8_0 against fp16


def test_text_encoder_in_scaled_float8_is_nearly_the_same(measured: Measured) -> None:
    assert 0 < measured["scaled_text"]["against_fp16"] < 0.1


def test_vae_gives_the_normalised_latents_of_diffusers(measured: Measured, tiny: TinySet) -> None:
    seen = load_file(measured["vae"]["file"])
    with open_weights(tiny.vae) as file:
        vae = load_vae(file, device=torch.device("cpu"), dtype=torch.float32)
    latents = vae.encode(seen["video"])
    assert (latents - seen["latents"]).norm() < 1e-4 * latents.norm()
    decoded = vae.decode(latents)
    assert (decoded - seen["decoded"]).norm() < 1e-4 * decoded.norm()


def test_vae_of_another_kind_is_refused_with_the_fix(measured: Measured) -> None:
    assert "Load wan_2.1_vae.safetensors" in measured["vae"]["refused"]


def test_empty_list_says_what_to_get_and_where_to_put_it(measured: Measured) -> None:
    empty = measured["empty"]
    file, repository = "wav2vec2-chinese-base_fp16.safetensors", "Kijai/wav2vec2_safetensors"
    assert empty["hint"] == f"no file: get {file} from {repository}"
    for part in (file, repository, f"{empty['folder']}/models/audio_encoders"):
        assert part in empty["said"]


def test_picture_encoder_matches_transformers_without_a_crop(measured: Measured) -> None:
    vision = measured["vision"]
    assert vision["shape"][:2] == [1, 257]
    assert vision["against_transformers"] < 1e-5
    assert vision["against_comfyui_crop"] > 0.01  # the photo is not square
