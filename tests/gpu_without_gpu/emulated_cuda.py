"""The launches of the CUDA backend, carried out by the PTX interpreter: compiled by nvcc, run without a GPU."""

import contextlib
import functools
from pathlib import Path

import torch

from xlstm_fused.backends.cuda import launch, steps
from xlstm_fused.backends.cuda import plan as planning

from .cuda_kernels import DEVICES
from .nvcc import Sources, Struct

CSRC = Path(__file__).parents[2] / "csrc"
ARCHS = {"alone": "sm_80", "cluster": "sm_90", "grid": "sm_80", "steps": "sm_80"}
"""The GPU whose PTX all code of an exchange is made of: the first in CUDA_ARCHS of setup.py."""
SOURCE = """#include "cells/cells.h"
#include "cuda/kernels.cuh"
namespace xlstm_fused::cuda {{
template __global__ void recurrence_{name}_kernel<{cell}, kinds::{kind}, {tiles}, Exchange::{exchange}>(
    const __grid_constant__ {params}, const __grid_constant__ Plan, uint64_t*, {more});
}}
"""
"""One kernel of the package's; compiling all that share its source file takes longer."""
STEP = """#include "cells/cells.h"
#include "cuda/step.cuh"
namespace xlstm_fused::cuda {{
template __global__ void step_{name}_kernel<{cell}, kinds::{kind}>(
    const __grid_constant__ {params}, const __grid_constant__ Step);
}}
"""
"""The same of what runs beside a product."""


@functools.cache
def sources(backward, cell, kind, tiles, exchange, csrc=CSRC):
    name, params, more = ("bwd", "BackwardParams", "const void*") if backward else (
        "fwd", "ForwardParams", "const __grid_constant__ Input")
    text = (STEP if exchange == "steps" else SOURCE).format(name=name, cell=cell.capitalize(), kind=kind, tiles=tiles,
                                                              exchange=exchange, params=params, more=more)
    return Sources(text, ARCHS[exchange], include=[csrc])


def _value(each):
    """A field of a parameter struct."""
    if each is None or isinstance(each, torch.Tensor) and each.numel() == 0:
        return "Q", 0
    if isinstance(each, torch.Tensor):
        each = each.detach()
        return (each.view(torch.int16) if each.dtype == torch.bfloat16 else each).numpy()
    return ("?", each) if isinstance(each, bool) else ("q", each)


class Emulator:
    """Takes the place of ``launch.call``."""

    def __init__(self, schedule, seed, csrc):
        self.schedule, self.seed, self.csrc = schedule, seed, csrc
        self.launches, self.inputs = [], []

    def __call__(self, backward, cell, kind, plan, device, problem, arrays, words, input=launch.NO_INPUT,
                 weight_t=None):
        parameters = Struct(*map(_value, (*problem, *arrays)))
        fields = Struct(*(("i", each) for each in plan.fields[:-2]), *(("q", each) for each in plan.fields[-2:]))
        B, K, N = problem[1], problem[8], problem[9]
        whole = plan.exchange == "grid"
        grid = plan.groups * plan.programs if whole else (-(-B // (plan.tiles * planning.TILE)) * plan.programs, N, K)
        rest = [Struct(_value(words)), _value(weight_t) if backward else Struct(*map(_value, input))]
        compiled = sources(backward, cell, kind, plan.tiles, plan.exchange, self.csrc)
        compiled.kernel().launch(
            grid, (32 * plan.warps,), [parameters, fields, *rest], smem=plan.shared_bytes, coop=whole,
            cluster=1 if whole else plan.programs, schedule=self.schedule, seed=self.seed)
        self.launches.append((backward, kind, plan))
        self.inputs += [input[0]] * (not backward)

    def step(self, backward, cell, kind, device, problem, arrays, step):
        """Takes the place of ``steps.call``."""
        fields = [Struct(*map(_value, each)) for each in ((*problem, *arrays), step)]
        B, K, N, D = problem[1], *problem[8:11]
        kernel = sources(backward, cell, kind, 1, "steps", self.csrc).kernel()
        # A program in order: threads have nothing to do with each other, and a race would be reported.
        kernel.launch((-(-K * N * B * D // 64),), (64,), fields, schedule=self.schedule, seed=self.seed)
        if step[0] == -1:
            self.launches.append((backward, kind, planning.STEPS))
            self.inputs += [0] * (not backward)

    @staticmethod
    def product(a, b, out):
        """Takes the place of ``steps.product``: torch has no such product on the CPU."""
        torch.bmm(a.float(), b.float(), out=out)


@contextlib.contextmanager
def emulated(exchange="alone", programs=1, tiles=1, schedule=None, seed=1, csrc=CSRC, shared_limit=None, groups=1):
    """Inside, the backend's launches run emulated, with so many programs for a head, and of a grid so many groups of
    them; yields the emulator, whose ``inputs`` are the features that each forward launch was given in place of wx.

    ``csrc`` is the folder of the sources, a mutant's perhaps. ``shared_limit`` is the shared memory to plan with
    instead of the device's.
    """
    device = DEVICES[ARCHS[exchange]]
    if shared_limit is not None:
        device = device._replace(shared_limit=shared_limit)
    before = launch.call, launch.forced_plan, launch.device_of, steps.call, steps.product

    def plan(D, itemsize, backward, inputs):
        if exchange == "steps":
            return None if inputs else planning.STEPS
        found = planning.plan_for(exchange, programs, tiles, D, itemsize, device, backward, inputs)
        return found and found._replace(groups=groups)

    try:
        emulator = launch.call = Emulator(schedule, seed, csrc)
        launch.forced_plan, steps.call, steps.product = plan, emulator.step, emulator.product
        launch.device_of = lambda _: device
        yield emulator
    finally:
        launch.call, launch.forced_plan, launch.device_of, steps.call, steps.product = before
