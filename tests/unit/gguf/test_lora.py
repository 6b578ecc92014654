"""LoRA files act on the decoded weight and leave the packed bytes alone."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from comfyui_multitalk.tools.gguf_writer import Entry, write_gguf
from comfyui_multitalk.tools.quantize import quantize
from comfyui_multitalk.wan_gguf_loader.errors import GGUFError
from comfyui_multitalk.wan_gguf_loader.files import WeightsFile, open_weights
from comfyui_multitalk.wan_gguf_loader.lora import apply_lora, read_lora
from comfyui_multitalk.wan_gguf_loader.ops import GGUFLinear, GGUFOps

WIDTH, RANK = 256, 4
Q = "blocks.0.self_attn.q"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = GGUFOps().Linear(WIDTH, WIDTH)
        self.k = GGUFOps().Linear(WIDTH, 2 * WIDTH)
        self.norm_q = nn.LayerNorm(WIDTH)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.modulation = nn.Parameter(normal(1, 6, WIDTH), requires_grad=False)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(4, WIDTH, (1, 2, 2))
        self.blocks = nn.ModuleList([Block()])


def applied(model: nn.Module, file: WeightsFile, strength: float) -> int:
    """Apply a file and give the number of layers it changes."""
    lora = read_lora(file, model)
    apply_lora(model, lora, strength)
    return lora.num_layers


@pytest.fixture
def model() -> nn.Module:
    made = Model()
    for seed, layer in enumerate(linears(made).values()):
        weight = normal(layer.out_features, layer.in_features, seed=seed)
        layer.store_weight(quantize(weight, "Q4_K"), "Q4_K")
        layer.bias = normal(layer.out_features, seed=9)
    return made


def linears(model: nn.Module) -> dict[str, GGUFLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, GGUFLinear)}


def weight_of(model: nn.Module, path: str = Q) -> Tensor:
    return linears(model)[path].dequantized_weight(torch.float32)


class Calls(TorchDispatchMode):
    """Notes the operations that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def factors(seed: int = 0, *, out: int = WIDTH) -> tuple[Tensor, Tensor]:
    return normal(out, RANK, seed=20 + seed), normal(RANK, WIDTH, seed=30 + seed)


def saved(folder: Path, tensors: Mapping[str, Tensor], name: str = "lora") -> WeightsFile:
    path = folder / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return open_weights(path)


def peft(seed: int = 0, *, prefix: str = "diffusion_model.") -> dict[str, Tensor]:
    up, down = factors(seed)
    return {f"{prefix}{Q}.lora_A.weight": down, f"{prefix}{Q}.lora_B.weight": up}


def digest(model: nn.Module) -> str:
    content = b"".join(layer.weight.numpy().tobytes() for layer in linears(model).values())
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "prefix",
    ["", "diffusion_model.", "transformer.", "base_model.model.", "base_model.model.model.",
     "model.diffusion_model."],
)  # fmt: skip
def test_lora_peft_keys_add_the_product(model: nn.Module, prefix: str, tmp_path: Path) -> None:
    before, bytes_before = weight_of(model), digest(model)
    up, down = factors()
    assert applied(model, saved(tmp_path, peft(prefix=prefix)), 0.5) == 1
    torch.testing.assert_close(weight_of(model), before + 0.5 * up @ down, rtol=0, atol=1e-6)
    assert digest(model) == bytes_before


def test_lora_kohya_keys_scale_by_alpha_over_rank(model: nn.Module, tmp_path: Path) -> None:
    before = weight_of(model, "blocks.0.self_attn.k")
    up, down = factors(out=2 * WIDTH)
    stem = "lora_unet_blocks_0_self_attn_k"
    keys = {
        f"{stem}.lora_up.weight": up,
        f"{stem}.lora_down.weight": down,
        f"{stem}.alpha": torch.tensor(1.0),
    }
    assert applied(model, saved(tmp_path, keys), 2) == 1
    expected = before + 2 * (1 / RANK) * up @ down
    torch.testing.assert_close(
        weight_of(model, "blocks.0.self_attn.k"), expected, rtol=0, atol=1e-6
    )


def test_lora_in_a_packed_file_is_decoded(model: nn.Module, tmp_path: Path) -> None:
    before = weight_of(model)
    up, down = normal(WIDTH, 32, seed=20), normal(32, WIDTH, seed=30)
    path = tmp_path / "lora.gguf"
    entries = [
        Entry(f"{Q}.lora_B.weight", (WIDTH, 32), "Q8_0"),
        Entry(f"{Q}.lora_A.weight", (32, WIDTH), "F16"),
    ]
    metadata = {"general.architecture": "wan"}
    write_gguf(path, entries, [quantize(up, "Q8_0"), down.half()], metadata=metadata)
    file = open_weights(path)
    assert applied(model, file, 1) == 1
    product = file.dequantize(f"{Q}.lora_B.weight") @ down.half().float()
    torch.testing.assert_close(weight_of(model), before + product, rtol=0, atol=1e-6)


def test_lora_strength_zero_equals_none(model: nn.Module, tmp_path: Path) -> None:
    x = normal(5, WIDTH)
    layer = linears(model)[Q]
    expected = layer(x)
    keys = {**peft(), f"{Q}.diff_b": normal(WIDTH)}
    assert applied(model, saved(tmp_path, keys), 0) == 1
    assert torch.equal(layer(x), expected)


def test_lora_three_stacked_equal_their_sum(model: nn.Module, tmp_path: Path) -> None:
    before = weight_of(model)
    strengths = (1.0, -0.5, 0.25)
    expected = before
    for i, strength in enumerate(strengths):
        up, down = factors(i)
        expected = expected + strength * up @ down
        applied(model, saved(tmp_path, peft(i), name=str(i)), strength)
    torch.testing.assert_close(weight_of(model), expected, rtol=0, atol=1e-6)


def test_lora_in_bfloat16_is_the_changed_weight_up_to_rounding(
    model: nn.Module, tmp_path: Path
) -> None:
    layer, x = linears(model)[Q], normal(5, WIDTH)
    unchanged = layer(x)
    applied(model, saved(tmp_path, peft()), 1)
    expected, result = layer(x), layer(x.bfloat16()).float()
    assert (result - expected).norm() < 5e-3 * expected.norm()
    assert (unchanged - expected).norm() > 0.1 * expected.norm()


def test_lora_files_are_added_by_one_product(model: nn.Module, tmp_path: Path) -> None:
    for i in range(3):
        applied(model, saved(tmp_path, peft(i), name=str(i)), 1.0)
    with Calls() as calls:
        linears(model)[Q](normal(5, WIDTH))
    assert calls.names.count("aten.addmm_.default") == 1


def test_lora_differences_change_weights_biases_and_modulation(
    model: nn.Module, tmp_path: Path
) -> None:
    before, bytes_before = copy.deepcopy(model), digest(model)
    norm = "blocks.0.self_attn.norm_q"
    keys = {
        f"diffusion_model.{Q}.diff": normal(WIDTH, WIDTH, seed=1),
        f"diffusion_model.{Q}.diff_b": normal(WIDTH, seed=2),
        f"diffusion_model.{norm}.diff": normal(WIDTH, seed=3),
        f"diffusion_model.{norm}.diff_b": normal(WIDTH, seed=4),
        "diffusion_model.blocks.0.diff_m": normal(1, 6, WIDTH, seed=5),
    }
    assert applied(model, saved(tmp_path, keys), 0.5) == 3
    torch.testing.assert_close(
        weight_of(model), weight_of(before) + 0.5 * normal(WIDTH, WIDTH, seed=1)
    )
    for name, seed in ((f"{Q}.bias", 2), (f"{norm}.weight", 3), (f"{norm}.bias", 4)):
        old = before.state_dict()[name]
        torch.testing.assert_close(model.state_dict()[name], old + 0.5 * normal(WIDTH, seed=seed))
    modulation = before.state_dict()["blocks.0.modulation"] + 0.5 * normal(1, 6, WIDTH, seed=5)
    torch.testing.assert_close(model.state_dict()["blocks.0.modulation"], modulation)
    assert isinstance(model.get_submodule(norm).weight, nn.Parameter)
    assert digest(model) == bytes_before


def test_lora_on_a_convolution_is_merged(model: nn.Module, tmp_path: Path) -> None:
    before = model.state_dict()["patch_embedding.weight"].clone()
    up, down = normal(WIDTH, 2, 1, 1, 1, seed=1), normal(2, 4, 1, 2, 2, seed=2)
    keys = {
        "patch_embedding.lora_up.weight": up,
        "patch_embedding.lora_down.weight": down,
    }
    applied(model, saved(tmp_path, keys), 1)
    expected = before + (up.flatten(1) @ down.flatten(1)).view(before.shape)
    torch.testing.assert_close(model.state_dict()["patch_embedding.weight"], expected)


def test_lora_is_no_part_of_the_state_dict(model: nn.Module, tmp_path: Path) -> None:
    before = list(model.state_dict())
    applied(model, saved(tmp_path, peft()), 1)
    assert list(model.state_dict()) == before


def test_lora_survives_deepcopy(model: nn.Module, tmp_path: Path) -> None:
    applied(model, saved(tmp_path, peft()), 1)
    assert torch.equal(weight_of(copy.deepcopy(model)), weight_of(model))


def test_lora_for_another_model_says_so(model: nn.Module, tmp_path: Path) -> None:
    file = saved(tmp_path, {"double_blocks.0.img_attn.lora_A.weight": normal(RANK, WIDTH)})
    with pytest.raises(GGUFError, match="not a LoRA for this model") as caught:
        applied(model, file, 1)
    assert str(caught.value).startswith(f"{file.path.name}: ")


@pytest.mark.parametrize(
    "key",
    ["blocks.7.self_attn.q.lora_A.weight", f"{Q}.oft_blocks", "lora_unet_blocks_7_q.alpha"],
)
def test_lora_unmatched_keys_are_listed_and_nothing_changes(
    model: nn.Module, key: str, tmp_path: Path
) -> None:
    before = weight_of(model)
    file = saved(tmp_path, {**peft(prefix=""), key: normal(RANK, WIDTH)})
    with pytest.raises(GGUFError, match=f"1 of the 3 tensors .* {key}"):
        applied(model, file, 1)
    assert torch.equal(weight_of(model), before)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({f"{Q}.lora_A.weight": normal(RANK, WIDTH)}, "needs both"),
        (
            {f"{Q}.lora_A.weight": normal(RANK, 512), f"{Q}.lora_B.weight": normal(WIDTH, RANK)},
            r"shape \(256, 512\), the model has \(256, 256\)",
        ),
        (
            {f"{Q}.lora_A.weight": normal(3, WIDTH), f"{Q}.lora_B.weight": normal(WIDTH, RANK)},
            "two ranks",
        ),
        ({f"{Q}.diff": normal(WIDTH)}, r"shape \(256,\), the model has \(256, 256\)"),
        ({"blocks.0.diff": normal(WIDTH)}, "the model has none there"),
    ],
    ids=["half", "width", "ranks", "difference", "no_weight"],
)
def test_lora_misfit_says_what_is_wrong_and_nothing_changes(
    model: nn.Module, keys: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    before = weight_of(model, "blocks.0.self_attn.k")
    up, down = factors(out=2 * WIDTH)
    good = {
        "blocks.0.self_attn.k.lora_A.weight": down,
        "blocks.0.self_attn.k.lora_B.weight": up,
    }
    with pytest.raises(GGUFError, match=message):
        applied(model, saved(tmp_path, {**good, **keys}), 1)
    assert torch.equal(weight_of(model, "blocks.0.self_attn.k"), before)


def test_lora_diffusers_own_names_are_translated(model: nn.Module, tmp_path: Path) -> None:
    before = weight_of(model)
    up, down = factors()
    stem = "transformer.blocks.0.attn1.to_q"
    keys = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    assert applied(model, saved(tmp_path, keys), 1) == 1
    torch.testing.assert_close(weight_of(model), before + up @ down, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "stem",
    [
        "lora_te_encoder_block_0_layer_0_SelfAttention_q",
        "text_encoder.encoder.layers.0.q",
        "diffusion_model.vace_blocks.0.self_attn.q",
        "lora_unet_vace_blocks_0_self_attn_q",
    ],
)
def test_lora_keys_of_other_parts_are_left_out_with_one_warning(
    model: nn.Module, stem: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = weight_of(model)
    up, down = factors()
    others = {f"{stem}.lora_down.weight": normal(2, 8), f"{stem}.lora_up.weight": normal(8, 2)}
    assert applied(model, saved(tmp_path, {**peft(), **others}), 1) == 1
    torch.testing.assert_close(weight_of(model), before + up @ down, rtol=0, atol=1e-6)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "2 of the 4 tensors" in warning
    assert stem.removeprefix("diffusion_model.") in warning


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lora_A", torch.zeros(()), r"shape \[\]; a LoRA factor needs 2 dimensions"),
        ("lora_A", torch.zeros(0, WIDTH), r"shape \[0, 256\]; a LoRA factor"),
        ("lora_A", torch.zeros(RANK, WIDTH, dtype=torch.int32), "holds I32 numbers"),
        ("lora_B", torch.zeros(WIDTH), r"shape \[256\]; a LoRA factor"),
        ("lora_B", torch.zeros(WIDTH, 0), r"shape \[256, 0\]; a LoRA factor"),
        ("alpha", torch.zeros(2), r"shape \[2\]; the alpha"),
        ("lora_down", torch.zeros(RANK, WIDTH), "are the same part of one layer"),
    ],
    ids=["rank_0", "no_rows", "integers", "rank_1", "no_columns", "two_alphas", "twice"],
)
def test_lora_damaged_tensor_is_named(
    model: nn.Module, name: str, value: Tensor, message: str, tmp_path: Path
) -> None:
    key = f"{Q}.{name}" if name == "alpha" else f"{Q}.{name}.weight"
    with pytest.raises(GGUFError, match=message) as error:
        applied(model, saved(tmp_path, peft(prefix="") | {key: value}), 1)
    assert key in str(error.value)
    assert str(error.value).startswith("lora.safetensors: ")
