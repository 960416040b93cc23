"""Products of matrices in half precision, on processors that have no kernels for them.

There PyTorch falls back on loops of its own, which are some ten times slower than float32 forward and a hundred times
backward. Multiplied in float32 and rounded, the products are no less exact: kernels sum in float32 too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@contextmanager
def half_in_float32() -> Iterator[None]:
    """While open, linears in bfloat16 and float16 are multiplied in float32 where the processor cannot do it itself.

    A float32 copy is held of one linear at a time; other devices, and whatever is in float32, run as ever.
    """
    with _Mode():
        yield


class _Mode(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # The two that layers are made of: `nn.Linear` and what is built on it, and the `Conv1D` of GPT-2.
        kwargs = kwargs or {}
        if func is F.linear and len(args) > 1 and _slow(*args[:2]):
            return _linear(*args, **kwargs)
        if func is torch.addmm and len(args) == 3 and not kwargs and _slow(*args[1:]):
            return _linear(args[1], args[2].T, args[0])
        return func(*args, **kwargs)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.apply(x, weight, bias)


def _slow(x: Tensor, weight: Tensor) -> bool:
    """Whether this product would be left to PyTorch's own loops."""
    half = x.dtype == weight.dtype and x.dtype in (torch.bfloat16, torch.float16)
    return half and x.device.type == weight.device.type == "cpu" and not _has_kernels(x.dtype)


@cache
def _has_kernels(dtype: torch.dtype) -> bool:
    kernels = torch.ops.mkldnn
    return bool(kernels._is_mkldnn_bf16_supported() if dtype is torch.bfloat16 else kernels._is_mkldnn_fp16_supported())


class _Linear(torch.autograd.Function):
    """`x W^T + b`; what is kept for the backward pass is in half precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_weight = weight.requires_grad
        ctx.save_for_backward(weight, x if wants_weight else None)
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, x = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        g, kind = gradient.float(), gradient.dtype
        rows = g.reshape(-1, g.shape[-1])
        return (
            (g @ weight.float()).to(kind) if of_x else None,
            (rows.T @ x.float().reshape(len(rows), -1)).to(kind) if of_weight else None,
            rows.sum(0).to(kind) if of_bias else None,
        )
