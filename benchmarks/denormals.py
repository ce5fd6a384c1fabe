"""``python -m benchmarks denormals``: whether subnormal numbers, which many processors compute slowly, slow a call.

The same layer on inputs of normal size and on inputs and initial states that are subnormal in float32, in turns.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch.utils.benchmark import Timer

from xlstm_fused import FusedxLSTM
from xlstm_fused.cells import CELLS

SUBNORMAL = 1e-40
LIMIT = 1.5
"""The largest ratio that is all right."""
TURNS = 7


def arguments(parser: argparse.ArgumentParser) -> None:
    for name, default in (("batch", 8), ("steps", 128), ("input", 64), ("hidden", 128), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.1, help="of each block of calls, default: %(default)s")


def step(layer: FusedxLSTM, x: torch.Tensor, hx, cotangent: torch.Tensor) -> None:
    """A forward and the gradients of input and parameters."""
    torch.autograd.grad(layer(x, hx)[0], (x, *layer.parameters()), cotangent)


def problem(cell: str, scale: float, args: argparse.Namespace):
    """``(layer, x, hx, cotangent)``, all numbers but weights and the sLSTM's normaliser of about ``scale``.

    Without biases: what weights make of subnormal numbers is subnormal as well, at every step.
    """
    torch.manual_seed(0)
    layer = FusedxLSTM(args.input, args.hidden, cell=cell, bias=False)
    x, states = torch.randn(args.steps, args.batch, args.input), torch.randn(1, args.batch, args.hidden)
    cotangent = torch.randn(args.steps, args.batch, args.hidden)
    hx = tuple(scale * states if name != "n" else states.abs() + 1 for name in CELLS[cell].states)
    return layer, (scale * x).requires_grad_(), hx, scale * cotangent


def ratio(cell: str, args: argparse.Namespace) -> float:
    """The time with subnormal numbers over that with normal ones, the median of neighbouring blocks of calls."""
    timers = [Timer("step(*problem)", globals={"step": step, "problem": problem(cell, scale, args)},
                    num_threads=args.threads) for scale in (SUBNORMAL, 1.0)]
    ratios = []
    for _ in range(TURNS):
        subnormal, normal = (timer.blocked_autorange(min_run_time=args.seconds).median for timer in timers)
        ratios.append(subnormal / normal)
    return statistics.median(ratios)


def run(args: argparse.Namespace) -> int:
    worst = 0.0
    for cell in CELLS:
        found = ratio(cell, args)
        worst = max(worst, found)
        print(f"{cell}: a training step on subnormal numbers takes {found:.2f} times that on normal ones")
    return int(worst > LIMIT)
