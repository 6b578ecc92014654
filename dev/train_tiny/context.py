"""Attention to short prompts with the result of long ones, for less work.

The transformer pads every prompt with zero rows to 512 tokens, which all become the same key and
value. Attention to n equal keys equals attention to one key whose score is log(n) higher, so
training needs only one of them.
"""

from __future__ import annotations

import functools
import math

from torch import Tensor
from torch.nn import functional

from ...multitalk_core.model.attention import Attends
from ...multitalk_core.model.hooks import Hooks


def repeat_padding(*, times: int) -> Hooks:
    """Let every block attend to the last text token as if it occurred `times` times."""
    return Hooks(attends=Attends(text=functools.partial(_attend, bonus=math.log(times))))


def _attend(q_BNAD: Tensor, k_BMAD: Tensor, v_BMAD: Tensor, *, bonus: float) -> Tensor:  # noqa: N803
    q, k, v = (x.transpose(1, 2) for x in (q_BNAD, k_BMAD, v_BMAD))
    score = functional.pad(q.new_zeros(k.shape[2] - 1), (0, 1), value=bonus)
    attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=score[None, None, None])
    return attended.transpose(1, 2)
