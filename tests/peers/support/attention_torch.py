"""PyTorch's counterparts of the operations on attention: called with an operation's inputs and
parameters, on PyTorch tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from gpubackprop.backends import get_backend


def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    causal: bool = False,
    past: int = 0,
    scale: float | None = None,
    p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
) -> Any:
    """Step by step; the kept weights are read off the random words that the contract names."""
    (b, h, tq, d), (hkv, tk) = q.shape, k.shape[1:3]
    k, v = (x.repeat_interleave(h // hkv, dim=1) for x in (k, v))
    s = q @ k.transpose(-1, -2) * (d**-0.5 if scale is None else scale)
    if causal:
        s = s.masked_fill(torch.arange(tk) > torch.arange(tq)[:, None] + past, -math.inf)
    if mask is not None:
        s = s.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else s + mask
    if not tk:
        return torch.zeros(b, h, tq, v.shape[-1], dtype=q.dtype) + 0.0 * (q.sum() + v.sum())
    nothing = (s == -math.inf).all(dim=-1, keepdim=True)
    w = torch.softmax(s.masked_fill(nothing, 0.0), dim=-1).masked_fill(nothing, 0.0)
    if p:
        width = -(-tk // 4) * 4
        keep = get_backend("cpu").bernoulli((b, h, tq, width), 1.0 - p, seed, stream, offset)
        w = torch.where(torch.as_tensor(keep[..., :tk]), w / (1.0 - p) if p < 1.0 else 0.0 * w, 0.0)
    return w @ v


def rotary(x: Any, cos: Any, sin: Any, interleaved: bool = False) -> Any:
    """A product of complex numbers, one for each pair of features."""
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
    both = torch.view_as_real(turned)
    return (both if interleaved else both.transpose(-1, -2)).flatten(-2)


TORCH: dict[str, Callable[..., Any]] = {"attention": attention, "rotary": rotary}
