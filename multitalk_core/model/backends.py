"""Who computes the attention among video tokens, by name: torch, or a package that is faster.

Beside `attention.py`, for `Attends.video` of a caller without a host of its own. Only that one
gains: text, photo and voices are so few keys that torch is the faster there, so they stay with it,
as the reference map does.

- `torch`: torch's own choice; on Hopper that is cuDNN, also where a host has put it last.
- `flash`: FlashAttention-4, PyPI's flash-attn-4; as exact as torch's, and other in the last bits.
- `sage`: SageAttention, whose scores are of int8 queries and keys, so less exact.
- `auto`: `flash` on the cards where it was measured and found faster, if installed; else `torch`.

Letters: B batch, N tokens, M context tokens, A heads, D head width.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import InputError
from .attention import Attend, attend

AttentionName = Literal["auto", "torch", "flash", "sage"]

_HOPPER = 9
"""Major compute capability. On an H100 flash-attn-4 has 686 TFLOP/s, cuDNN 585 and torch's flash
kernel 365; on other cards they were not measured."""

_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

_log = logging.getLogger(__name__)


class Backend(NamedTuple):
    """An attention, and which of the names it goes by: `torch`, `flash` or `sage`."""

    name: str
    attend: Attend


class _Package(NamedTuple):
    """What PyPI calls a package, and how to get its attention."""

    name: str
    load: Callable[[], Attend]


def video_attention(
    name: AttentionName,
    *,
    device: torch.device,
    dtype: torch.dtype,
    capability: tuple[int, int] | None = None,
) -> Backend:
    """Choose who computes the attention among video tokens.

    Args:
        name: What is asked for.
        device: Where the tokens are.
        dtype: Of the tokens.
        capability: The card's compute capability; the card is asked unless it is given.

    Returns:
        The attention; `torch` has nothing to install.

    Raises:
        InputError: If one asked for by name does not work here; `auto` asks for none.
    """
    works = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if name == "auto":
        if not works or not _is_hopper(device, capability):
            return _TORCH
        try:
            backend = _load("flash")
            _try(backend, device=device, dtype=dtype)
        except Exception as reason:  # noqa: BLE001  (its compiler's errors have their own classes)
            _log.info("flash-attn-4 would be faster here, but does not work: %s", reason)
            return _TORCH
        return backend
    if name == "torch":
        return _TORCH
    if not works:
        raise InputError(
            f"The attention {name!r} does not work on {device} in "
            f"{str(dtype).removeprefix('torch.')}: it needs a CUDA card and bfloat16 or float16. "
            "Choose the attention 'torch' or 'auto'."
        )
    try:
        return _load(name)
    except (ImportError, OSError) as reason:
        package = _PACKAGES[name].name
        raise InputError(
            f"The attention {name!r} needs the package {package}, which cannot be imported "
            f"({reason}). Install it by `pip install {package}`, or choose the attention 'torch' "
            "or 'auto'."
        ) from reason


def torch_attention(q_BNAD: Tensor, k_BMAD: Tensor, v_BMAD: Tensor) -> Tensor:  # noqa: N803
    """Attend by torch; on Hopper it is told its own order, which ComfyUI's calls overwrite."""
    if not (_is_hopper(q_BNAD.device) and _takes_order()):
        return attend(q_BNAD, k_BMAD, v_BMAD)
    with sdpa_kernel(_CUDNN_FIRST, set_priority=True):
        return attend(q_BNAD, k_BMAD, v_BMAD)


@functools.cache
def _takes_order() -> bool:
    return "set_priority" in inspect.signature(sdpa_kernel).parameters  # torch 2.6 may lack it


def _is_hopper(device: torch.device, capability: tuple[int, int] | None = None) -> bool:
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    major, _ = capability or torch.cuda.get_device_capability(device)
    return major == _HOPPER


def _try(backend: Backend, *, device: torch.device, dtype: torch.dtype) -> None:
    """Call it once: a package whose compiler is of another version fails only then."""
    tokens = torch.zeros(1, 128, 1, 128, device=device, dtype=dtype)
    backend.attend(tokens, tokens, tokens)


def _load(name: str) -> Backend:
    """Import a package; a missing shared library is an `OSError`."""
    package = _PACKAGES[name]
    backend = Backend(name, package.load())
    _log.info("%s computes the attention among video tokens", package.name)
    return backend


def _flash() -> Attend:
    from flash_attn.cute import flash_attn_func

    def attend(q_BNAD: Tensor, k_BMAD: Tensor, v_BMAD: Tensor) -> Tensor:  # noqa: N803
        result = flash_attn_func(q_BNAD, k_BMAD, v_BMAD)
        # Some of its versions give the softmax's log-sum as well.
        tokens: Tensor = result[0] if isinstance(result, tuple) else result
        return tokens

    return attend


def _sage() -> Attend:
    from sageattention import sageattn

    def attend(q_BNAD: Tensor, k_BMAD: Tensor, v_BMAD: Tensor) -> Tensor:  # noqa: N803
        # It takes the mean from the keys in place, of which the softmax knows nothing: a copy
        # would only cost memory, but keys that are used again must not come here.
        tokens: Tensor = sageattn(q_BNAD, k_BMAD, v_BMAD, tensor_layout="NHD")
        return tokens

    return attend


_TORCH = Backend("torch", torch_attention)
_PACKAGES = {
    "flash": _Package("flash-attn-4", _flash),
    "sage": _Package("sageattention", _sage),
}
