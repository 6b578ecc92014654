"""The attention backends for the video tokens, by name: torch, or a faster package.

Used for `Attends.video`. Text, photo and voices have so few keys that torch is faster there.

- `torch`: torch's scaled dot-product attention; on Hopper its cuDNN kernel, where it can be used.
- `flash`: FlashAttention-4 (flash-attn-4 on PyPI); as exact as torch, different in the last bits.
- `sage`: SageAttention; less exact, because it rounds queries and keys to int8.
- `auto`: `flash` where it is installed and was measured to be faster (Hopper), otherwise `torch`.

Letters: B batch, N tokens, M context tokens, A heads, D head width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

from ..errors import InputError
from .attention import Attend, attend

AttentionName = Literal["auto", "torch", "flash", "sage"]

_HOPPER = 9
"""Major compute capability. On an H100 flash-attn-4 has 686 TFLOP/s, cuDNN 585 and torch's flash
kernel 365; on other cards they were not measured."""

_CUDNN = torch.ops.aten._scaled_dot_product_cudnn_attention

_log = logging.getLogger(__name__)


class Backend(NamedTuple):
    """An attention and the name of its backend: `torch`, `flash` or `sage`."""

    name: str
    attend: Attend


class _Package(NamedTuple):
    """A package's name on PyPI, and the function that imports its attention."""

    name: str
    load: Callable[[], Attend]


def video_attention(name: AttentionName, *, device: torch.device, dtype: torch.dtype) -> Backend:
    """Choose the attention backend for video tokens on a device, in a dtype.

    Raises:
        InputError: If the requested backend does not work here; never for `auto` and `torch`.
    """
    works = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if name == "auto":
        if not works or not _is_hopper(device):
            return _TORCH
        return _flash_if_it_works(device, dtype) or _TORCH
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
    """Attend by torch; on Hopper by its cuDNN kernel, whatever order of kernels is set in torch.

    ComfyUI sets an order for the whole process in which flash comes first; on Hopper that kernel
    has 0.6 of cuDNN's rate. The kernel is called by name, so the setting stays untouched.
    """
    if torch.compiler.is_compiling() or not _is_hopper(q_BNAD.device):
        return attend(q_BNAD, k_BMAD, v_BMAD)
    q, k, v = (x.transpose(1, 2) for x in (q_BNAD, k_BMAD, v_BMAD))
    # No mask, no dropout, not causal, as many key heads as query heads.
    if not can_use_cudnn_attention(SDPAParams(q, k, v, None, 0.0, False, False)):
        return attend(q_BNAD, k_BMAD, v_BMAD)
    learns = q.requires_grad or k.requires_grad or v.requires_grad
    tokens: Tensor = _CUDNN(q, k, v, None, learns)[0]
    return tokens.transpose(1, 2)


def _flash_if_it_works(device: torch.device, dtype: torch.dtype) -> Backend | None:
    try:
        backend = _load("flash")
        _try(backend, device=device, dtype=dtype)
    except ModuleNotFoundError as reason:
        if (reason.name or "").startswith("flash_attn"):
            _log.info("flash-attn-4 is not installed; the attention would be faster with it")
            return None
        _warn_of_flash(reason)
    except Exception as reason:  # noqa: BLE001  (its compiler raises classes of its own)
        _warn_of_flash(reason)
    else:
        return backend
    return None


def _warn_of_flash(reason: Exception) -> None:
    _log.warning(
        "flash-attn-4 is installed but does not work (%s: %s); torch is used in its place",
        type(reason).__name__,
        reason,
    )


def _is_hopper(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device)[0] == _HOPPER


def _try(backend: Backend, *, device: torch.device, dtype: torch.dtype) -> None:
    """Call it once: a package with the wrong version of its compiler fails only when called."""
    tokens = torch.zeros(1, 128, 1, 128, device=device, dtype=dtype)
    backend.attend(tokens, tokens, tokens)


def _load(name: str) -> Backend:
    """Import a package; a missing shared library raises `OSError`."""
    package = _PACKAGES[name]
    backend = Backend(name, package.load())
    _log.info("attention backend of the video tokens: %s", package.name)
    return backend


def _flash() -> Attend:
    from flash_attn.cute import flash_attn_func

    def attend(q_BNAD: Tensor, k_BMAD: Tensor, v_BMAD: Tensor) -> Tensor:  # noqa: N803
        result = flash_attn_func(q_BNAD, k_BMAD, v_BMAD)
        # Some versions also return the log-sum of the softmax.
        tokens: Tensor = result[0] if isinstance(result, tuple) else result
        return tokens

    return attend


def _sage() -> Attend:
    from sageattention import sageattn

    def attend(q_BNAD: Tensor, k_BMAD: Tensor, v_BMAD: Tensor) -> Tensor:  # noqa: N803
        # It subtracts the mean of the keys in place. The softmax does not change by that, but the
        # keys must not be used again.
        tokens: Tensor = sageattn(q_BNAD, k_BMAD, v_BMAD, tensor_layout="NHD")
        return tokens

    return attend


_TORCH = Backend("torch", torch_attention)
_PACKAGES = {"flash": _Package("flash-attn-4", _flash), "sage": _Package("sageattention", _sage)}
