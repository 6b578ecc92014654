"""Runs inside ComfyUI's Python: measures what the host tests hold, prints one JSON object.

python measure.py COMFYUI PACK TINY SCRATCH
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scene import (
    ADAPTER,
    BASE,
    CPU,
    KEY,
    PROMPT,
    SCRATCH,
    TINY,
    Scene,
    comfyui_wan,
    distance,
    scene_forward,
    scene_forward_loaded,
)

# isort: split
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from safetensors.torch import save_file

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.nodes.host import folders, model, text, vision
from comfyui_multitalk.nodes.host.layers import HostOps, adopt
from comfyui_multitalk.nodes.host.session import Session
from comfyui_multitalk.standalone import encoders
from comfyui_multitalk.wan_gguf_loader.files import open_weights
from comfyui_multitalk.wan_gguf_loader.ops import GGUFOps


def native_model(scene: Scene) -> dict[str, Any]:
    """KSampler on our MODEL against ComfyUI's own Wan; adapter; sharing."""
    base = model.load_base(BASE)
    ours = scene.sample(base)
    theirs = comfyui_wan()
    talking = model.load_adapter(base, ADAPTER)
    weight = comfy.utils.get_attr(base.model, KEY)
    refused = ""
    try:
        model.transformer_of(theirs)
    except InputError as error:
        refused = str(error)
    return {
        "against_comfyui": distance(ours, scene.sample(theirs)),
        "adapter_without_audio": distance(scene.sample(talking), ours),
        "adapter_shares": weight.data_ptr() == comfy.utils.get_attr(talking.model, KEY).data_ptr(),
        "packed_dtype": str(weight.dtype),
        "foreign_model": refused,
    }


def int8(_scene: Scene) -> dict[str, Any]:
    """Products in int8: ComfyUI's layers against the command's; refused where all is float32."""
    tokens = torch.randn(1, 1024, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight, bias = torch.randn(48, 64), torch.randn(48)
    outputs = []
    for make in (HostOps, GGUFOps):
        for precision in ("int8", "exact"):
            layer = make(precision=precision).Linear(64, 48)
            layer.store_weight(weight, "F32")
            layer.bias = bias
            if make is HostOps:
                adopt(torch.nn.Sequential(layer))
            outputs.append(layer(tokens))
    ours, exact, theirs, _ = outputs
    base = model.load_base(BASE)
    model.transformer_of(base).precision = "int8"
    talking = model.transformer_of(model.load_adapter(base, ADAPTER))
    refused = ""
    try:
        model.load_base(BASE, precision="int8")
    except InputError as error:
        refused = str(error)
    return {
        "as_the_command": torch.equal(ours, theirs),
        "off_from_exact": distance(ours, exact),
        "adapter_too": talking.blocks[0].audio_cross_attn.proj.precision,
        "feed": HostOps(precision="int8").feed is not None,
        "refused": refused,
    }


def lora(scene: Scene) -> dict[str, Any]:
    """A LoRA by ComfyUI's own loader on packed weights: effect, bytes, removal, low VRAM."""
    base = model.load_base(BASE)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    plain = scene.sample(base)
    file = comfy.utils.load_torch_file(str(TINY / "lora_tiny.safetensors"))
    patched, _ = comfy.sd.load_lora_for_models(base, None, file, 1.0, 0.0)
    changed = scene.sample(patched)
    unchanged = all(torch.equal(before[n], v) for n, v in base.model.state_dict().items())
    comfyui, _ = comfy.sd.load_lora_for_models(comfyui_wan(), None, file, 1.0, 0.0)
    zero, _ = comfy.sd.load_lora_for_models(base, None, file, 0.0, 0.0)
    carried = scene.sample(model.load_adapter(patched, ADAPTER))
    restored = scene.sample(base)
    return {
        "patched": len(patched.patches),
        "effect": distance(changed, plain),
        "against_comfyui": distance(changed, scene.sample(comfyui)),
        "bytes_unchanged": unchanged,
        "strength_zero": torch.equal(scene.sample(zero), plain),
        "restored": torch.equal(restored, plain),
        "adapter_carries": distance(carried, changed),
        "low_vram": low_vram(patched, scene, changed),
    }


def plain_base(scene: Scene) -> dict[str, Any]:
    """A safetensors base: its weights are plain, and a LoRA goes ComfyUI's own way into them."""
    with open_weights(BASE) as file:
        weights = {name: file.dequantize(name) for name in file.tensors}
        heads = {"num_heads": str(file.num_heads)}
    save_file(weights, SCRATCH / "base.safetensors", heads)
    base = model.load_base(SCRATCH / "base.safetensors")
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    plain = scene.sample(base)
    file = comfy.utils.load_torch_file(str(TINY / "lora_tiny.safetensors"))
    patched, _ = comfy.sd.load_lora_for_models(base, None, file, 1.0, 0.0)
    comfyui, _ = comfy.sd.load_lora_for_models(comfyui_wan(), None, file, 1.0, 0.0)
    changed = scene.sample(patched)
    restored = torch.equal(scene.sample(base), plain)
    return {
        "against_packed": distance(plain, scene.sample(model.load_base(BASE))),
        "lora_against_comfyui": distance(changed, scene.sample(comfyui)),
        "restored": restored,
        "weights_restored": all(
            torch.equal(before[n], v) for n, v in base.model.state_dict().items()
        ),
    }


def low_vram(patched: Any, scene: Scene, expected: torch.Tensor) -> dict[str, Any]:
    """The same LoRA with most weights left out of the device, then freed step by step."""
    comfy.model_management.unload_all_models()
    patched.partially_load(torch.device("cpu"), extra_memory=600_000)
    low = bool(patched.model.model_lowvram)
    partly = scene_forward(patched, scene)
    patched.partially_unload(torch.device("cpu"), memory_to_free=1e12)
    freed = scene_forward(patched, scene)
    patched.detach()
    whole = scene_forward_loaded(patched, scene)
    return {"low": low, "partly": distance(partly, whole), "freed": distance(freed, whole)}


def text_encoder(scene: Scene) -> dict[str, Any]:
    """ComfyUI's UMT5 class against `transformers`, from one file; and from GGUF."""
    with open_weights(TINY / "umt5_tiny.safetensors") as file:
        theirs = encoders.load_text_encoder(file, device=CPU, dtype=torch.float32).encode([PROMPT])[
            0
        ]
    ours = scene.clip.encode_from_tokens_scheduled(scene.clip.tokenize(PROMPT))[0][0]
    length = theirs.shape[1]
    packed = SCRATCH / "umt5.gguf"
    write_gguf_text_encoder(packed)
    loaded = text.load_text_encoder(packed)
    again = loaded.encode_from_tokens_scheduled(loaded.tokenize(PROMPT))[0][0]
    odd = f"{PROMPT}  \uff26\uff55ll width, \xbd \xe9migr\xe9; \u65e5\u672c"
    tokens = [c.tokenize(odd)["umt5xxl"] for c in (scene.clip, loaded)]
    layer = loaded.cond_stage_model.umt5xxl.transformer.encoder.block[0].layer[0].SelfAttention.q
    return {
        "tokens": length,
        "against_transformers": distance(ours[:, :length], theirs),
        "rest": float(ours[:, length:].abs().max()),
        "gguf_tokens_equal": tokens[0] == tokens[1],
        "gguf": distance(again, ours),
        "gguf_packed": str(layer.weight.dtype),
    }


def scaled_text_encoder(scene: Scene) -> dict[str, Any]:
    """The eight-bit packaging most users have: float8 weights with a scale beside each."""
    weights = comfy.utils.load_torch_file(str(TINY / "umt5_tiny.safetensors"))
    scaled = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, value in weights.items():
        if (".SelfAttention." in name or ".DenseReluDense." in name) and "bias" not in name:
            scale = value.float().abs().max() / 448
            scaled[name.replace(".weight", ".scale_weight")] = scale
            value = (value.float() / scale).to(torch.float8_e4m3fn)
        scaled[name] = value
    save_file(scaled, SCRATCH / "umt5_fp8_scaled.safetensors")
    loaded = text.load_text_encoder(SCRATCH / "umt5_fp8_scaled.safetensors")
    ours, eight = (
        clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0][0]
        for clip in (scene.clip, loaded)
    )
    return {"against_fp16": distance(eight, ours)}


def write_gguf_text_encoder(path: Path) -> None:
    """Write the tiny UMT5 as city96's files are: llama.cpp names, tokenizer in the metadata."""
    import gguf
    import sentencepiece

    weights = comfy.utils.load_torch_file(str(TINY / "umt5_tiny.safetensors"))
    proto = weights.pop("spiece_model").numpy().tobytes()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    writer = gguf.GGUFWriter(path, "t5encoder")
    kinds = {"is_unknown": 2, "is_control": 3, "is_unused": 5, "is_byte": 6}
    every = range(pieces.get_piece_size())
    writer.add_tokenizer_model("t5")
    writer.add_token_list([pieces.id_to_piece(i) for i in every])
    writer.add_token_scores([pieces.get_score(i) for i in every])
    writer.add_token_types(
        [next((k for name, k in kinds.items() if getattr(pieces, name)(i)), 1) for i in every]
    )
    charsmap = field(field(proto, 3), 2)
    if charsmap:
        writer.add_precompiled_charsmap(charsmap)
    writer.add_eos_token_id(pieces.eos_id())
    writer.add_unk_token_id(pieces.unk_id())
    writer.add_pad_token_id(pieces.pad_id())
    for name, value in weights.items():
        tensor = value.float().numpy()
        if name.endswith("norm.weight"):
            writer.add_tensor(llama_name(name), tensor)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            kind = kind if tensor.shape[-1] % 32 == 0 else gguf.GGMLQuantizationType.F16
            writer.add_tensor(llama_name(name), gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def field(message: bytes, wanted: int) -> bytes:
    """Give a length-delimited field of a protocol buffer message, empty if it is not there."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        if tag & 7 == 2:
            length = varint()
            if tag >> 3 == wanted:
                return message[at : at + length]
            at += length
        elif tag & 7 == 0:
            varint()
        else:
            at += 4 if tag & 7 == 5 else 8
    return b""


def llama_name(name: str) -> str:
    """Translate a Hugging Face name of UMT5 to llama.cpp's."""
    for old, new in {
        "shared.": "token_embd.",
        "encoder.final_layer_norm.": "enc.output_norm.",
        "encoder.block.": "enc.blk.",
        ".layer.0.layer_norm.": ".attn_norm.",
        ".layer.0.SelfAttention.relative_attention_bias.": ".attn_rel_b.",
        ".layer.0.SelfAttention.": ".attn_",
        ".layer.1.layer_norm.": ".ffn_norm.",
        ".layer.1.DenseReluDense.wi_0.": ".ffn_gate.",
        ".layer.1.DenseReluDense.wi_1.": ".ffn_up.",
        ".layer.1.DenseReluDense.wo.": ".ffn_down.",
    }.items():
        name = name.replace(old, new)
    return name


def picture_encoder(scene: Scene) -> dict[str, Any]:
    """ComfyUI's CLIP class against `transformers`, from one file and one picture."""
    image = scene.photo.movedim(-1, 1) * 2 - 1
    with open_weights(TINY / "clip_vision_tiny.safetensors") as file:
        theirs = encoders.load_image_encoder(file, device=CPU, dtype=torch.float32).encode(image)
    ours = vision.encode_picture(scene.clip_vision, image)
    cropped = scene.clip_vision.encode_image(scene.photo).penultimate_hidden_states
    return {
        "shape": list(ours.shape),
        "against_transformers": distance(ours, theirs),
        "against_comfyui_crop": distance(ours, cropped),
    }


def video_vae(scene: Scene) -> dict[str, Any]:
    """ComfyUI's VAE as core sees it; the test holds the file against diffusers'."""
    talking = model.load_adapter(model.load_base(BASE), ADAPTER)
    session = Session(talking, vae=scene.vae, clip_vision=scene.clip_vision)
    generator = torch.Generator().manual_seed(5)
    video = torch.rand(1, 3, 9, 32, 48, generator=generator) * 2 - 1
    latents = session.vae.encode(video)
    decoded = session.vae.decode(latents)
    file = SCRATCH / "vae.safetensors"
    tensors = {"video": video, "latents": latents, "decoded": decoded}
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    refused = ""
    try:
        Session(talking, vae=scene.clip_vision, clip_vision=scene.clip_vision)
    except InputError as error:
        refused = str(error)
    return {"file": str(file), "refused": refused}


def interrupt(scene: Scene) -> dict[str, Any]:
    """Cancel while the first block runs: how many blocks end, and of how many."""
    base = model.load_base(BASE)
    blocks = base.model.diffusion_model.blocks
    ended: list[int] = []

    def cancel(*_: Any) -> None:
        ended.append(1)
        comfy.model_management.interrupt_current_processing()

    for block in blocks:
        block.register_forward_hook(cancel)
    stopped = False
    try:
        scene_forward_loaded(base, scene)
    except comfy.model_management.InterruptProcessingException:
        stopped = True
    return {"stopped": stopped, "ended": len(ended), "blocks": len(blocks)}


def empty_lists(_scene: Scene) -> dict[str, Any]:
    """What a list without files offers, and what choosing that says; there are no models here."""
    hint, _tiny = folders.WAV2VEC2.choices()
    return {"hint": hint, "said": folders.WAV2VEC2.check(hint), "folder": str(SCRATCH)}


def main() -> None:
    """Measure everything."""
    logging.getLogger().setLevel(logging.WARNING)
    parts: dict[str, Callable[[Scene], dict[str, Any]]] = {
        "model": native_model,
        "int8": int8,
        "lora": lora,
        "plain": plain_base,
        "text": text_encoder,
        "scaled_text": scaled_text_encoder,
        "vision": picture_encoder,
        "vae": video_vae,
        "empty": empty_lists,
        "interrupt": interrupt,
    }
    with torch.inference_mode():
        scene = Scene()
        result = {name: part(scene) for name, part in parts.items()}
    sys.stdout.write("\n" + json.dumps(result) + "\n")


main()
