"""Transformers in safetensors without scales: dtypes, prefixes, shards, checkpoints, spellings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from . import values
from .codecs import E4M3, E5M2, plain
from .files import Family, Loads, Refused, Variant, Written
from .spellings import diffusers_wan
from .stored import Stored, encode, save_shards

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
DTYPES = {"fp16": HALF, "bf16": BRAIN, "fp32": FULL}
_KEPT = re.compile(
    r"norm|modulation|bias|patch_embedding|head|embedding|projection|img_emb|audio_p"
)

Build = Callable[[], Stored]


def one_file(
    family: Family,
    name: str,
    build: Build,
    *,
    outcome: Refused | None = None,
    tolerance: float = 0.0,
    file: str = "",
) -> Variant:
    """Describe a single safetensors file, which loads if no other outcome is given."""

    def written(folder: Path) -> Written:
        stored = build()
        path = folder / (file or f"{family}.safetensors")
        stored.save(path)
        return Written(path, outcome or Loads(stored.values, tolerance))

    return Variant(family, name, written)


def sharded(
    family: Family,
    name: str,
    build: Build,
    choose: Callable[[list[Path]], Path],
    *,
    index: bool = True,
    outcome: Refused | None = None,
    tolerance: float = 0.0,
) -> Variant:
    """Describe a model in three safetensors files."""

    def written(folder: Path) -> Written:
        stored = build()
        stem = "diffusion_pytorch_model"
        paths = save_shards(stored, folder, stem=stem, count=3, index=index)
        return Written(choose(paths), outcome or Loads(stored.values, tolerance))

    return Variant(family, name, written)


def as_index(paths: list[Path]) -> Path:
    """Choose the index."""
    return next(paths[0].parent.glob("*.json"))


def without_second(paths: list[Path]) -> Path:
    """Lose the second file and choose the first."""
    paths[1].unlink()
    return paths[0]


def base(dtype: torch.dtype = HALF, *, rest: torch.dtype | None = None) -> Stored:
    """Store the base."""
    return encode(values.base(), plain(dtype), rest=rest or dtype)


def adapter(dtype: torch.dtype = HALF) -> Stored:
    """Store the adapter."""
    return encode(values.adapter(), plain(dtype), rest=dtype)


def merged(dtype: torch.dtype = HALF) -> Stored:
    """Store the base with the adapter in it."""
    return encode(values.transformer(), plain(dtype), rest=dtype)


def vae() -> Stored:
    """Store the autoencoder."""
    return encode(values.autoencoder(), plain(HALF))


def as_multitalk(stored: Stored) -> Stored:
    """Rename the audio projection as Kijai's nodes do."""
    return stored.renamed(lambda name: re.sub("^audio_proj", "multitalk_audio_proj", name))


def _kept_wide(name: str) -> torch.dtype:
    return FULL if _KEPT.search(name) else BRAIN


def _norm_wide(name: str) -> torch.dtype:
    return FULL if re.search("norm_x|audio_proj|bias", name) else HALF


def rows() -> Iterator[Variant]:
    """Give all variants."""
    yield from _dtypes()
    yield from _prefixes()
    yield from _shards()
    yield from _official()
    yield from _checkpoints()
    yield from _spellings()
    yield from _unreadable()


def _dtypes() -> Iterator[Variant]:
    dtypes = {**DTYPES, "fp8 e4m3": E4M3, "fp8 e5m2": E5M2}
    builds = {"base": base, "adapter": adapter, "merged": merged}
    for family, build in builds.items():
        for name, dtype in dtypes.items():
            yield one_file(family, f"safetensors {name}", lambda b=build, d=dtype: b(d))
    models = {"base": values.base, "adapter": values.adapter}
    for family, model in models.items():
        for name, dtype in {"e4m3": E4M3, "e5m2": E5M2}.items():
            yield one_file(
                family,
                f"safetensors fp8 {name}, norms and embeddings fp32 (Kijai)",
                lambda m=model, d=dtype: encode(m(), plain(d), rest=_kept_wide),
            )
    yield one_file("base", "safetensors fp64", lambda: base(torch.float64))
    yield one_file(
        "adapter",
        "safetensors fp16, `norm_x` and projection fp32 (Kijai)",
        lambda: encode(values.adapter(), plain(HALF), rest=_norm_wide),
        file="Wan2_1-InfiniTetalk-Single_fp16.safetensors",
    )


def _prefixes() -> Iterator[Variant]:
    prefixes = ("model.diffusion_model.", "model.", "net.", "diffusion_model.", "transformer.")
    for prefix in (*prefixes, "pipe.dit.module."):
        yield one_file("base", f"prefix `{prefix}`", lambda p=prefix: base().prefixed(p))
    for prefix in ("model.diffusion_model.", "diffusion_model.", "model."):
        yield one_file("adapter", f"prefix `{prefix}`", lambda p=prefix: adapter().prefixed(p))
    yield one_file(
        "merged",
        "prefix `model.diffusion_model.`",
        lambda: merged().prefixed("model.diffusion_model."),
    )
    yield one_file("adapter", "`multitalk_audio_proj.` (Kijai)", lambda: as_multitalk(adapter()))
    yield one_file(
        "adapter",
        "`multitalk_audio_proj.` under `diffusion_model.`",
        lambda: as_multitalk(adapter()).prefixed("diffusion_model."),
    )
    yield one_file("merged", "`multitalk_audio_proj.` (Kijai)", lambda: as_multitalk(merged()))


def _shards() -> Iterator[Variant]:
    chosen = {
        "index chosen": as_index,
        "folder chosen": lambda paths: paths[0].parent,
        "first file chosen": lambda paths: paths[0],
        "last file chosen": lambda paths: paths[-1],
    }
    for name, choose in chosen.items():
        yield sharded("base", f"three shards, {name}", base, choose)
    yield sharded("base", "three shards without an index", base, lambda p: p[0], index=False)
    lost = "diffusion_pytorch_model-00002-of-00003.safetensors"
    yield sharded("base", "three shards, one lost", base, without_second, outcome=Refused(lost))
    yield sharded("adapter", "three shards, index chosen", adapter, as_index)
    yield sharded("adapter", "three shards, folder chosen", adapter, lambda p: p[0].parent)
    yield sharded("merged", "three shards, index chosen", merged, as_index)
    yield sharded("base", "three shards fp8, first file chosen", lambda: base(E4M3), lambda p: p[0])


def _official() -> Iterator[Variant]:
    """Folders as the models' own READMEs tell to make them."""

    def meigen(folder: Path) -> Written:
        """Base shards, `multitalk.safetensors` beside them, and one index for both."""
        stem = "diffusion_pytorch_model"
        save_shards(base(), folder, stem=stem, count=3, index=True)
        index = folder / f"{stem}.safetensors.index.json"
        index.with_name(f"{index.name}_old").write_text(index.read_text())
        places = json.loads(index.read_text())["weight_map"]
        own = adapter(FULL)
        own.save(folder / "multitalk.safetensors")
        places |= dict.fromkeys(own.tensors, "multitalk.safetensors")
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return Written(folder, Loads({**base().values, **own.values}))

    yield Variant(
        "merged", "MeiGen's folder: base shards, multitalk.safetensors, one index", meigen
    )

    def as_half(paths: list[Path]) -> Path:
        index = as_index(paths)
        return index.rename(index.with_name(index.name.replace(".index.", ".index.fp16.")))

    yield sharded("base", "three shards, index named `.index.fp16.json` (diffusers)", base, as_half)
    for name, file in {
        "`.sft`": "base.sft",
        "a name without ending": "base",
        "`.gguf`": "base.gguf",
    }.items():
        yield one_file("base", f"safetensors under {name}", base, file=file)
    same: dict[str, tuple[Family, Build]] = {
        "Wan2.1 Fun-InP or SkyReels-V2 I2V (the same tensors)": ("base", base),
        "SkyReels-V3-A2V (the same tensors)": ("merged", lambda: merged(BRAIN)),
    }
    for name, (family, build) in same.items():
        yield one_file(family, name, build, file="diffusion_pytorch_model.safetensors")
    yield sharded(
        "merged", "SoulX-FlashTalk-14B (the same tensors)", lambda: merged(BRAIN), as_index
    )
    yield one_file(
        "base",
        "with the buffer of its rotations (`freqs`)",
        lambda: base().plus(freqs=torch.ones(1024, 64)),
    )


def _checkpoints() -> Iterator[Variant]:
    def with_vae(model: Stored, prefix: str) -> Stored:
        joined = model.prefixed("model.diffusion_model.").joined(vae().prefixed(prefix))
        return joined._replace(values=model.values)

    for family, build in {"base": base, "merged": merged}.items():
        for prefix in ("first_stage_model.", "vae."):
            yield one_file(
                family,
                f"checkpoint with a VAE under `{prefix}`",
                lambda b=build, p=prefix: with_vae(b(), p),
            )
    yield one_file(
        "merged",
        "base under `model.diffusion_model.`, adapter without prefix",
        lambda: base().prefixed("model.diffusion_model.").joined(adapter()),
    )
    yield one_file(
        "base",
        "the same base under two prefixes",
        lambda: base().prefixed("model.").joined(base().prefixed("ema.")),
        outcome=Refused("twice"),
    )


def _spellings() -> Iterator[Variant]:
    def spelled(dtype: torch.dtype = HALF) -> Stored:
        return base(dtype).renamed(diffusers_wan)

    yield one_file("base", "diffusers' names, fp16", spelled)
    yield one_file("base", "diffusers' names, bf16", lambda: spelled(BRAIN))
    yield one_file(
        "base",
        "diffusers' names, prefix `transformer.`",
        lambda: spelled().prefixed("transformer."),
    )
    yield sharded(
        "base",
        "diffusers' names, three shards, folder chosen",
        spelled,
        lambda paths: paths[0].parent,
    )


def _unreadable() -> Iterator[Variant]:
    def pickled(folder: Path) -> Written:
        path = folder / "multitalk.safetensors"
        torch.save({"a": torch.ones(2)}, path)
        return Written(path, Refused("pickle"))

    yield Variant("base", "PyTorch pickle", pickled)
    yield Variant("adapter", "PyTorch pickle", pickled)

    def cut_short(folder: Path) -> Written:
        path = base().save(folder / "base.safetensors").path
        path.write_bytes(path.read_bytes()[:-1000])
        return Written(path, Refused("[Dd]ownload"))

    yield Variant("base", "truncated download", cut_short)

    def web_page(folder: Path) -> Written:
        path = folder / "base.safetensors"
        path.write_text("<!DOCTYPE html><html><body>404</body></html>")
        return Written(path, Refused("web page"))

    yield Variant("base", "a web page in its place", web_page)
