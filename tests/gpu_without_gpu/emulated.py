"""The launches of the backend, carried out by the PTX interpreter: compiled for a GPU, run without one."""

import contextlib

import torch

from xlstm_fused.backends.triton import launch

from .ahead_of_time import TARGETS, compiled, signature
from .ptx import Kernel


class EmulatedKernel:
    """Takes the place of a Triton kernel: ``kernel[grid](*arguments, **constants)``."""

    def __init__(self, kernel, target, seed):
        self.kernel, self.target, self.seed = kernel, target, seed
        self.launches = 0

    def __getitem__(self, grid):
        return lambda *arguments, **named: self._run(grid, arguments, named)

    def _run(self, grid, arguments, named):
        options = {name: named.pop(name) for name in launch.OPTIONS}
        arguments = dict(zip(self.kernel.arg_names, arguments)) | named
        binary = compiled(self.kernel, arguments, self.target, **options)
        types, _ = signature(self.kernel, arguments)
        values = [_plain(arguments[name]) for name, kind in types.items() if kind != "constexpr"]
        program = Kernel(binary.asm["ptx"])
        program.launch(grid, (32 * binary.metadata.num_warps,), values, smem=binary.metadata.shared,
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


@contextlib.contextmanager
def emulated(target, plan=None, seed=1, kernels=None):
    """Inside, the backend's launches run emulated on ``target``; yields the two kernels.

    ``plan`` is forced, or chosen for the target. ``kernels`` are the two to run instead of the backend's.
    """
    names = "recurrence_fwd_kernel", "recurrence_bwd_kernel"
    before = {name: getattr(launch, name) for name in (*names, "forced_plan", "device_of")}
    stand_ins = [EmulatedKernel(kernel, target, seed) for kernel in kernels or (before[name] for name in names)]
    try:
        for name, kernel in zip(names, stand_ins):
            setattr(launch, name, kernel)
        launch.forced_plan, launch.device_of = plan, lambda device: TARGETS[target][1]
        yield stand_ins
    finally:
        for name, value in before.items():
            setattr(launch, name, value)
