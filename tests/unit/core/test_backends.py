"""The attention backends of the video tokens, with stand-ins for the packages."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from comfyui_multitalk.multitalk_core.errors import InputError
from comfyui_multitalk.multitalk_core.model import backends
from comfyui_multitalk.multitalk_core.model.attention import attend
from comfyui_multitalk.multitalk_core.model.backends import (
    AttentionName,
    Backend,
    torch_attention,
    video_attention,
)

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
BF16 = torch.bfloat16
FLASH = "def flash_attn_func(q, k, v):\n    return q + 2 * k + 3 * v\n"
FLASH_WITH_SUMS = "def flash_attn_func(q, k, v):\n    return q + 2 * k + 3 * v, None\n"
SAGE = "def sageattn(q, k, v, tensor_layout):\n    return q + 2 * k + 3 * v, tensor_layout\n"

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Give a function that writes a package's source; real ones are hidden meanwhile.

    The card is a Hopper. What is tried on it before it is chosen is tried on the CPU.
    """
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    tried = backends._try

    def on_cpu(backend: Backend, *, device: torch.device, dtype: torch.dtype) -> None:
        tried(backend, device=CPU, dtype=dtype)

    monkeypatch.setattr(backends, "_try", on_cpu)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("flash_attn", "flash_attn.cute", "sageattention"):
        monkeypatch.setitem(sys.modules, name, None)

    def write(name: str, source: str) -> None:
        package = tmp_path.joinpath(*name.split("."))
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(source, encoding="utf-8")
        for hidden in {name, name.split(".")[0]}:
            del sys.modules[hidden]
        importlib.invalidate_caches()

    return write


def heads() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 5, 2, 4, generator=generator) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_auto_is_flash_on_a_hopper_card_that_has_it(install: Install, dtype: torch.dtype) -> None:
    install("flash_attn.cute", FLASH)
    assert video_attention("auto", device=CUDA, dtype=dtype).name == "flash"


@pytest.mark.parametrize(
    ("device", "dtype", "capability"),
    [
        (CUDA, BF16, (8, 9)),
        (CUDA, BF16, (10, 0)),
        (CUDA, torch.float32, (9, 0)),
        (CPU, BF16, (9, 0)),
    ],
    ids=["Ada", "Blackwell", "float32", "CPU"],
)
def test_auto_is_torch_where_flash_was_not_found_faster(
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    dtype: torch.dtype,
    capability: tuple[int, int],
) -> None:
    install("flash_attn.cute", FLASH)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    chosen = video_attention("auto", device=device, dtype=dtype)
    assert chosen == ("torch", torch_attention)


def test_auto_is_torch_where_only_sage_is_installed(install: Install) -> None:
    install("sageattention", SAGE)
    chosen = video_attention("auto", device=CUDA, dtype=BF16)
    assert chosen == ("torch", torch_attention)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_package", "no_such_package"),
        ("raise OSError('libcute.so')", "OSError: libcute.so"),
        ("class Bad(Exception): ...\ndef flash_attn_func(*_):\n    raise Bad('x()')", "Bad: x()"),
    ],
    ids=["package", "library", "compiler"],
)
def test_auto_is_torch_where_flash_lacks_something_it_needs(
    install: Install, caplog: pytest.LogCaptureFixture, source: str, reason: str
) -> None:
    install("flash_attn.cute", source)
    chosen = video_attention("auto", device=CUDA, dtype=BF16)
    assert chosen == ("torch", torch_attention)
    (warning,) = (entry for entry in caplog.records if entry.levelno == logging.WARNING)
    assert "flash-attn-4 is installed but does not work" in warning.message
    assert reason in warning.message


def test_torch_is_torchs_wherever_it_is_asked_for(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("flash_attn.cute", FLASH)
    with caplog.at_level(logging.INFO):
        for device, dtype in ((CUDA, BF16), (CPU, torch.float32)):
            assert video_attention("torch", device=device, dtype=dtype) == (
                "torch",
                torch_attention,
            )
    assert not caplog.text


def test_torch_attention_on_hopper_calls_cudnn_and_changes_no_setting_of_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU cuDNN's kernel is stood in for by torch's reference."""
    called = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: None, learns: bool) -> tuple[Tensor, None]:
        called.append((torch._C._get_sdp_priority_order(), learns))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v), None

    before = torch._C._get_sdp_priority_order()
    monkeypatch.setattr(backends, "_is_hopper", lambda device: True)
    monkeypatch.setattr(backends, "can_use_cudnn_attention", lambda given: True)
    monkeypatch.setattr(backends, "_CUDNN", kernel)
    torch.testing.assert_close(torch_attention(*heads()), attend(*heads()))
    assert called == [(before, False)]


def test_torch_attention_on_hopper_leaves_to_torch_what_cudnn_does_not_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "_is_hopper", lambda device: True)
    assert torch.equal(torch_attention(*heads()), attend(*heads()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_torch_attention_on_a_card_is_the_reference_whatever_the_order_of_kernels() -> None:
    q, k, v = (torch.randn(1, 256, 4, 128, device=CUDA, dtype=BF16) for _ in range(3))
    expected = attend(q.float(), k.float(), v.float())
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION], set_priority=True):
        found = torch_attention(q, k, v).float()
    assert float((found - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize("source", [FLASH, FLASH_WITH_SUMS], ids=["tokens", "tokens and sums"])
def test_flash_gives_the_tokens(
    install: Install, caplog: pytest.LogCaptureFixture, source: str
) -> None:
    install("flash_attn.cute", source)
    with caplog.at_level(logging.INFO):
        name, flash = video_attention("flash", device=CUDA, dtype=BF16)
    q, k, v = heads()
    assert name == "flash"
    assert torch.equal(flash(q, k, v), q + 2 * k + 3 * v)
    assert "attention backend of the video tokens: flash-attn-4" in caplog.text


def test_sage_is_told_that_tokens_come_before_heads(install: Install) -> None:
    install("sageattention", SAGE)
    name, sage = video_attention("sage", device=CUDA, dtype=BF16)
    q, k, v = heads()
    tokens, layout = sage(q, k, v)
    assert (name, layout) == ("sage", "NHD")
    assert torch.equal(tokens, q + 2 * k + 3 * v)


@pytest.mark.parametrize(
    ("name", "package"), [("flash", "flash-attn-4"), ("sage", "sageattention")]
)
def test_attention_that_is_not_installed_names_its_package(
    install: Install, name: AttentionName, package: str
) -> None:
    with pytest.raises(InputError, match=f"'{name}' needs .*`pip install {package}`.* 'torch'"):
        video_attention(name, device=CUDA, dtype=BF16)


@pytest.mark.parametrize(
    ("device", "dtype", "place"),
    [(CPU, BF16, "cpu in bfloat16"), (CUDA, torch.float32, "cuda in float32")],
)
@pytest.mark.parametrize("name", ["flash", "sage"])
def test_attention_that_does_not_work_there_says_what_it_needs(
    install: Install, name: AttentionName, device: torch.device, dtype: torch.dtype, place: str
) -> None:
    install("flash_attn.cute", FLASH)
    install("sageattention", SAGE)
    with pytest.raises(InputError, match=f"'{name}' does not work on {place}: it needs a CUDA"):
        video_attention(name, device=device, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # its compiler's
def test_flash_on_a_card_is_near_torch() -> None:
    """Relative norm of the difference, in bfloat16: both are off by 2.3e-3 themselves."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("flash_attn.cute")
    generator = torch.Generator(CUDA).manual_seed(1)
    q, k, v = (
        torch.randn(2, 1000, 4, 64, generator=generator, device=CUDA, dtype=BF16) for _ in range(3)
    )
    plain = attend(q, k, v).float()
    fast = video_attention("flash", device=CUDA, dtype=BF16).attend(q, k, v).float()
    assert float((fast - plain).norm() / plain.norm()) < 6e-3
