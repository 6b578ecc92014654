"""A UMT5 text encoder in safetensors, written as llama.cpp writes it in GGUF."""

from __future__ import annotations

from pathlib import Path

import gguf
import sentencepiece
from safetensors.torch import load_file


def write_gguf_text_encoder(path: Path, source: Path) -> None:
    """Write a UMT5 as city96's files are: llama.cpp's names, tokenizer in the metadata, Q8_0."""
    weights = load_file(source)
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
