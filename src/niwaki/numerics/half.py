"""Products of matrices in half precision, on processors that have no kernels for them.

There PyTorch falls back on loops of its own, which are some ten times slower than float32 forward and a hundred times
backward. Multiplied in float32 and rounded, the products are no less exact: kernels sum in float32 too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

HALF = (torch.bfloat16, torch.float16)


def half_in_float32(*models: nn.Module) -> AbstractContextManager[object]:
    """While open, linears in bfloat16 and float16 are multiplied in float32 where the processor cannot do it itself.

    A float32 copy is held of one linear at a time. Unless one of the `models` holds such weights on such a processor
    nothing is opened: a mode of PyTorch costs time at every call, whatever it is of.
    """
    slow = any(_left_to_loops(parameter) for model in models for parameter in model.parameters())
    return _Mode() if slow else nullcontext()


def run_again(function: Callable[..., Any], *args: Any, models: Sequence[nn.Module], **options: Any) -> Any:
    """What `function` gives, which is forgotten and made again in the backward pass (`torch.utils.checkpoint`).

    A backward pass closes modes, so what was opened for the `models` is opened again in it.
    """

    def contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        return nullcontext(), half_in_float32(*models)

    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **options)


class _Mode(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # The two that layers are made of: `nn.Linear` and what is built on it, and the `Conv1D` of GPT-2.
        kwargs = kwargs or {}
        if func is F.linear and _slow(*_factors(*args, **kwargs)):
            return _linear(*args, **kwargs)
        if func is torch.addmm and len(args) == 3 and not kwargs and _slow(*args[1:]):
            return _linear(args[1], args[2].T, args[0])
        return func(*args, **kwargs)


# Both have the argument names of `F.linear`, which is called with any of them by name.
def _factors(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return input, weight


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.apply(input, weight, bias)


def _slow(x: Tensor, weight: Tensor) -> bool:
    """Whether this product would be left to PyTorch's own loops."""
    return x.dtype == weight.dtype and _left_to_loops(x) and _left_to_loops(weight)


def _left_to_loops(tensor: Tensor) -> bool:
    return tensor.dtype in HALF and tensor.device.type == "cpu" and not _has_kernels(tensor.dtype)


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
