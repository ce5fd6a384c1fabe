"""Launches for every step: torch's product of h and the recurrent matrix, then a kernel for the rest of the step.

For heads that no grid holds, and where a product for all sequences at once takes less time than programs that take them
in turns: ``plan.steps_pay``. Passes that come again are replayed as one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import addresses, on
from ..graphs import Graphs
from . import _cuda as _cuda

graphs = Graphs(in_turns=True)
"""In turns, since the library of the products has memory of its own in every graph, for whichever stream runs it."""


def product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``a @ b`` of shapes (M, B, inner) and (M, inner, outer), in float32 whatever their dtype."""
    if a.dtype == out.dtype:
        torch.bmm(a, b, out=out)
    else:
        torch.bmm(a, b, out_dtype=out.dtype, out=out)


def call(backward: bool, cell: str, kind: str, device: torch.device, problem: Sequence[Any],
         arrays: Sequence[Tensor | None], step: Sequence[Any]) -> None:
    """Launch one step's kernel on the current stream of ``device``, which is the current one. ``problem``, ``arrays``
    and ``step`` are structs of csrc/params.h and csrc/cuda/step.h; tensors stand for addresses, and None for 0."""
    launch = _cuda.step_backward if backward else _cuda.step_forward
    stream = torch.cuda.current_stream(device).cuda_stream
    launch(cell, kind, device.index, stream, addresses(problem), addresses(arrays), addresses(step))


def run(backward: bool, cell: str, kind: str, weight_hh: Tensor, problem: Sequence[Any],
        arrays: Sequence[Tensor | None]) -> None:
    """All steps of one pass. Up to T, though the longest length may be less: to read that would wait for the device."""
    K, G, N, D, _ = weight_hh.shape
    T, B, device = problem[0], problem[1], weight_hh.device
    # A copy only where there are several heads.
    matrix = weight_hh.detach().permute(0, 2, 1, 3, 4).reshape(K * N, G * D, D)
    inner, outer = (G * D, D) if backward else (D, G * D)
    operand = torch.empty((K * N, B, inner), dtype=weight_hh.dtype, device=device)
    result = torch.empty((K * N, B, outer), dtype=torch.float32, device=device)
    carry = torch.zeros((2, K, B, N, D), dtype=torch.float32, device=device) if backward else None

    def rest_of(step: int) -> None:
        call(backward, cell, kind, device, problem, arrays, (step, operand, result, carry))

    def launches() -> None:
        if backward:
            for step in reversed(range(T)):
                rest_of(step)
                product(operand, matrix, result)
            rest_of(-1)
        else:
            rest_of(-1)
            for step in range(T):
                product(operand, matrix.mT, result)
                rest_of(step)

    key = (backward, cell, kind, device, *addresses(problem), *addresses(arrays),
           *addresses((matrix, operand, result, carry)))
    with torch.no_grad(), on(device):
        graphs.run(key, launches, device)
