"""Memory of loading a 14B GGUF: `python -m comfyui_multitalk.dev.benchmarks.load_memory`.

Writes a sparse file with the tensors of Wan2.1-I2V-14B (zeros, which take no disk space), loads it
into GGUF layers and meanwhile samples the process's anonymous memory (RssAnon). Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ...tools.convert import choose_type
from ...tools.gguf_writer import Entry, layout
from ...wan_gguf_loader.files import open_weights
from ...wan_gguf_loader.load import load_weights
from ...wan_gguf_loader.ops import GGUFOps

DIM, FFN_DIM, TEXT_DIM, IMAGE_DIM, FREQ_DIM = 5120, 13824, 4096, 1280, 256
_SAMPLE_SECONDS = 0.001


class Result(NamedTuple):
    """Memory and time of a load."""

    blocks: int
    type: str
    parameters: int
    packed_bytes: int
    """Bytes of all tensors in the file."""
    peak_bytes: int
    """Highest anonymous memory during the load, above that before it."""
    kept_bytes: int
    """Anonymous memory after the load, above that before it."""
    seconds: float


def wan_shapes(num_blocks: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Wan2.1-I2V-14B (40 blocks)."""
    linear = {
        "text_embedding.0": (DIM, TEXT_DIM), "text_embedding.2": (DIM, DIM),
        "time_embedding.0": (DIM, FREQ_DIM), "time_embedding.2": (DIM, DIM),
        "time_projection.1": (6 * DIM, DIM), "head.head": (64, DIM),
        "img_emb.proj.1": (IMAGE_DIM, IMAGE_DIM), "img_emb.proj.3": (DIM, IMAGE_DIM),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (DIM, 36, 1, 2, 2), "patch_embedding.bias": (DIM,),
        "img_emb.proj.0.weight": (IMAGE_DIM,), "img_emb.proj.0.bias": (IMAGE_DIM,),
        "img_emb.proj.4.weight": (DIM,), "img_emb.proj.4.bias": (DIM,),
        "head.modulation": (1, 2, DIM),
    }  # fmt: skip
    for i_block in range(num_blocks):
        block = f"blocks.{i_block}"
        for layer in "qkvo":
            linear[f"{block}.self_attn.{layer}"] = (DIM, DIM)
        for layer in ("q", "k", "v", "o", "k_img", "v_img"):
            linear[f"{block}.cross_attn.{layer}"] = (DIM, DIM)
        linear |= {f"{block}.ffn.0": (FFN_DIM, DIM), f"{block}.ffn.2": (DIM, FFN_DIM)}
        norms = ("self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_q", "cross_attn.norm_k",
                 "cross_attn.norm_k_img", "norm3")  # fmt: skip
        shapes |= {f"{block}.{norm}.weight": (DIM,) for norm in norms}
        shapes |= {f"{block}.norm3.bias": (DIM,), f"{block}.modulation": (1, 6, DIM)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def build_model(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """Build a module tree of the parameters on the meta device; matrices become GGUF layers."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        owner = root
        for part in path[:-1] if len(shape) == 2 else path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if len(shape) == 2:
            owner.add_module(path[-1], GGUFOps().Linear(shape[1], shape[0], device="meta"))
        elif leaf not in owner._buffers:  # else the bias of a layer that is there
            owner.register_parameter(leaf, nn.Parameter(torch.empty(shape, device="meta")))
    return root


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]], *, type: str) -> int:
    """Write a sparse GGUF file of zeros; return the bytes of its tensors."""
    entries = [
        Entry(name, shape, choose_type(name, shape, stored="F32", type=type))
        for name, shape in shapes.items()
    ]
    plan = layout(entries, metadata={"general.architecture": "wan"})
    with path.open("wb") as file:
        file.write(plan.header)
        file.truncate(plan.size)
    return sum(entry.nbytes for entry in entries)


def anonymous_bytes() -> int:
    """Give this process's anonymous memory, without file pages and libraries."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("This system does not report RssAnon in /proc/self/status; Linux is needed.")


def measure(folder: Path, *, blocks: int, type: str) -> Result:
    """Write a sparse file, load it and watch the memory."""
    # Matrices before their biases, so that build_model sees the layer first.
    shapes = dict(sorted(wan_shapes(blocks).items(), key=lambda item: len(item[1]) != 2))
    path = folder / "wan.gguf"
    packed_bytes = write_sparse(path, shapes, type=type)
    model = build_model(shapes)
    before = anonymous_bytes()
    samples = [before]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            samples.append(anonymous_bytes())

    watcher = threading.Thread(target=sample)
    watcher.start()
    start = time.perf_counter()
    try:
        with open_weights(path) as file:
            load_weights(model, [file], dtype=torch.bfloat16)
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        path.unlink()
    after = anonymous_bytes()
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    peak = max(*samples, after) - before
    return Result(blocks, type, parameters, packed_bytes, peak, after - before, seconds)


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="load_memory", description="Memory of a GGUF load")
    parser.add_argument("--blocks", type=int, default=40, help="40 is the whole 14B model")
    parser.add_argument("--type", default="Q4_K", help="a type tools/convert.py writes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), blocks=options.blocks, type=options.type)
    ratio = result.peak_bytes / result.packed_bytes
    report = {**result._asdict(), "peak_over_packed": round(ratio, 4)}
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
