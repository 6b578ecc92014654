"""Storage types of weights files, and the parsed header that `files.py` takes.

Names and ids follow ggml (`ggml.h`) and the safetensors dtype names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .source import Source


class GGMLType(NamedTuple):
    """One ggml type: a row is cut into blocks of `block` elements, `bytes` bytes each."""

    name: str
    id: int
    block: int
    bytes: int


GGML_TYPES: Mapping[int, GGMLType] = {
    t.id: t
    for t in (
        GGMLType("F32", 0, 1, 4),
        GGMLType("F16", 1, 1, 2),
        GGMLType("Q4_0", 2, 32, 18),
        GGMLType("Q4_1", 3, 32, 20),
        GGMLType("Q5_0", 6, 32, 22),
        GGMLType("Q5_1", 7, 32, 24),
        GGMLType("Q8_0", 8, 32, 34),
        GGMLType("Q2_K", 10, 256, 84),
        GGMLType("Q3_K", 11, 256, 110),
        GGMLType("Q4_K", 12, 256, 144),
        GGMLType("Q5_K", 13, 256, 176),
        GGMLType("Q6_K", 14, 256, 210),
        GGMLType("IQ2_XXS", 16, 256, 66),
        GGMLType("IQ2_XS", 17, 256, 74),
        GGMLType("IQ3_XXS", 18, 256, 98),
        GGMLType("IQ1_S", 19, 256, 50),
        GGMLType("IQ4_NL", 20, 32, 18),
        GGMLType("IQ3_S", 21, 256, 110),
        GGMLType("IQ2_S", 22, 256, 82),
        GGMLType("IQ4_XS", 23, 256, 136),
        GGMLType("I8", 24, 1, 1),
        GGMLType("I16", 25, 1, 2),
        GGMLType("I32", 26, 1, 4),
        GGMLType("I64", 27, 1, 8),
        GGMLType("F64", 28, 1, 8),
        GGMLType("IQ1_M", 29, 256, 56),
        GGMLType("BF16", 30, 1, 2),
        GGMLType("TQ1_0", 34, 256, 54),
        GGMLType("TQ2_0", 35, 256, 66),
        GGMLType("MXFP4", 39, 32, 17),
        GGMLType("NVFP4", 40, 64, 36),
    )
}

TYPES_BY_NAME: Mapping[str, GGMLType] = {t.name: t for t in GGML_TYPES.values()}

REMOVED_TYPES = frozenset((4, 5, 31, 32, 33, 36, 37, 38))
"""Ids ggml once used and took out (Q4_2, Q4_3, the interleaved Q4_0 and IQ4_NL forms)."""

UNDECODABLE_TYPES: Mapping[int, str] = {9: "Q8_1", 15: "Q8_K", 41: "Q1_0"}
"""Types that only ggml itself decodes; they are not meant for weights files."""

PLAIN_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types whose bytes are those of a torch dtype."""


class StoredTensor(NamedTuple):
    """One tensor as the file's header describes it, already checked against the file's size.

    Attributes:
        name: Name in the file.
        type: Name of the storage type.
        shape: Shape in torch order (slowest dimension first).
        offset: First byte, counted from the start of the file.
        nbytes: Length in bytes.
        source: The file; a model in shards has several.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    source: Source

    def read(self) -> Tensor:
        """Read the tensor into its own memory on the CPU; packed types give uint8 `(nbytes,)`."""
        data = self.source.read_tensor(self.offset, self.nbytes)
        if self.type in PLAIN_DTYPES:
            return data.view(PLAIN_DTYPES[self.type]).reshape(self.shape)
        return data


class Header(NamedTuple):
    """A checked header: metadata (arrays are read on access) and tensors in file order."""

    metadata: Mapping[str, object]
    tensors: tuple[StoredTensor, ...]
