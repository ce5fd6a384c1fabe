"""The launches of the backend, carried out by the PTX interpreter: compiled for a GPU, run without one."""

import contextlib

import numpy as np
import torch

from xlstm_fused.backends.triton import launch

from .ahead_of_time import TARGETS, compiled, signature
from .ptx import Kernel
from .ptx_memory import Sparse

_ROWS = {"wx": 0, "x_in": 0, "reset": 0, "output": 0, "pre": 0, "states": 1, "d_output": 0, "d_pre": 0, "d_states": 1,
         "dpre": 0}
"""Which dimension counts rows, by argument."""
_RESET_ROWS = {"reset_h": 0, "reset_s": 1, "dreset_h": 0, "dreset_s": 1}
"""The same of a reset state per row."""


class EmulatedKernel:
    """Takes the place of a Triton kernel: ``kernel[grid](*arguments, **constants)``."""

    def __init__(self, kernel, target, seed, first_row):
        self.kernel, self.target, self.seed, self.first_row = kernel, target, seed, first_row
        self.launches = 0

    def __getitem__(self, grid):
        return lambda *arguments, **named: self._run(grid, arguments, named)

    def _run(self, grid, arguments, named):
        options = {name: named.pop(name) for name in launch.OPTIONS if name in named}
        arguments = dict(zip(self.kernel.arg_names, arguments)) | named
        binary = compiled(self.kernel, arguments, self.target, **options)
        types, _ = signature(self.kernel, arguments)
        values = {name: _plain(arguments[name]) for name, kind in types.items() if kind != "constexpr"}
        if self.first_row:
            values |= _moved(values, self.first_row, arguments["RESETS"] == 3)
        program = Kernel(binary.asm["ptx"])
        program.launch(grid, (32 * binary.metadata.num_warps,), list(values.values()), smem=binary.metadata.shared,
                       coop=options["launch_cooperative_grid"], seed=self.seed)
        self.launches += 1


def _plain(value):
    """A tensor's memory as a numpy array, None for one without elements, and numbers as they are."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.numel() == 0:
        return None
    value = value.detach()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def _moved(values, first_row, resets_per_row):
    """What changes in the arguments where all rows lie ``first_row`` rows further on, and none is in memory before."""
    P, changed = values["P"], {}
    for name, dimension in (_ROWS | _RESET_ROWS if resets_per_row else _ROWS).items():
        value = values.get(name)
        if value is not None:
            planes = value.reshape(-1, *value.shape[dimension:])
            row = planes[0, 0].size
            firsts = [(j * (first_row + P) + first_row) * row for j in range(len(planes))]
            changed[name] = Sparse(list(zip(firsts, planes)))
    batch = values["batch_offset"]
    if batch is None:
        batch = np.arange(values["B"], dtype=np.int64) * values["batch_stride"]
    return changed | {"P": first_row + P, "batch_offset": batch + first_row}


@contextlib.contextmanager
def emulated(target, plan=None, seed=1, kernels=None, first_row=0):
    """Inside, the backend's launches run emulated on ``target``; yields the two kernels.

    ``plan`` is forced, or chosen for the target. ``kernels`` are the two to run instead of the backend's. Kernels are
    told that rows begin at ``first_row`` of arrays that are so much longer.
    """
    names = "recurrence_fwd_kernel", "recurrence_bwd_kernel"
    before = {name: getattr(launch, name) for name in (*names, "forced_plan", "device_of")}
    chosen = kernels or [before[name] for name in names]
    stand_ins = [EmulatedKernel(kernel, target, seed, first_row) for kernel in chosen]
    try:
        for name, kernel in zip(names, stand_ins):
            setattr(launch, name, kernel)
        launch.forced_plan, launch.device_of = plan, lambda device: TARGETS[target][1]
        yield stand_ins
    finally:
        for name, value in before.items():
            setattr(launch, name, value)
