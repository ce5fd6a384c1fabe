"""What the shipped kernels need of a GPU, compiled without one: ``python tests/gpu_without_gpu/kernels.py``."""

import sys
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import triton
from packaging.version import Version
from triton import knobs

from gpu_without_gpu.ahead_of_time import TARGETS, compiled, cpu_seconds, resources
from xlstm_fused.backends.triton import config, launch
from xlstm_fused.rows import Rows


class Case(NamedTuple):
    """One kernel: a pass of a cell with heads of D units, for ``target``."""

    target: str
    dtype: torch.dtype
    cell: str
    D: int
    resets: bool = False
    B: int = 16
    tf32: bool = False
    I: int = 0
    """Features of an input whose product is in the kernel; 0 for none."""


bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
TESTED = (
    # Every branch of config.plan, on the device that has most: one program, kept and streamed matrices, one launch per
    # step, more sequences per program, and a D that is no power of two.
    *(Case("sm_90", bf16, "slstm", D) for D in (64, 128, 256, 512, 768, 1024, 2048)),
    Case("sm_90", bf16, "slstm", 512, B=256), Case("sm_90", bf16, "slstm", 1024, B=128),
    Case("sm_90", bf16, "slstm", 2048, B=512), Case("sm_90", fp16, "slstm", 300),
    *(Case("sm_90", bf16, "slstm", D, resets=True) for D in (64, 128, 512, 1024)),
    *(Case("sm_90", bf16, "gru", D, resets=True) for D in (128, 512)), Case("sm_90", fp16, "lstm", 128, resets=True),
    *(Case("sm_90", fp32, "slstm", D) for D in (64, 128, 512)), Case("sm_90", fp32, "gru", 64),
    Case("sm_90", fp32, "lstm", 200, resets=True), *(Case("sm_90", fp32, "slstm", D, tf32=True) for D in (64, 512)),
    Case("sm_90", bf16, "slstm", 64, I=16), Case("sm_90", bf16, "slstm", 128, I=32),
    Case("sm_90", fp16, "gru", 128, resets=True, I=32), Case("sm_80", bf16, "lstm", 64, I=32),
    Case("sm_100", bf16, "slstm", 64, I=32), Case("sm_120", fp16, "lstm", 64, I=5),
    Case("gfx942", bf16, "slstm", 64, I=16),
    # What other devices make of it.
    *(Case(target, bf16, "slstm", 128) for target in ("sm_80", "sm_100", "sm_120", "gfx942")),
    *(Case(target, fp32, "gru", 64) for target in ("sm_80", "sm_100", "sm_120", "gfx942")),
    Case("sm_80", bf16, "lstm", 512, resets=True), Case("sm_100", fp16, "gru", 512),
    Case("sm_120", fp16, "lstm", 512, resets=True), Case("gfx942", bf16, "slstm", 64, resets=True),
    Case("gfx942", fp16, "lstm", 512),
)
"""What the tests compile; the rest is for ``make kernels``, which takes minutes."""
CASES = TESTED + (
    Case("sm_90", bf16, "slstm", 32), *(Case("sm_90", bf16, "lstm", D) for D in (64, 128, 512)),
    *(Case("sm_90", bf16, "slstm", D, resets=True) for D in (256, 768, 2048)),
    Case("sm_90", bf16, "slstm", 512, resets=True, B=256), Case("sm_90", fp16, "slstm", 300, resets=True),
    Case("sm_90", fp32, "lstm", 64), Case("sm_90", fp32, "lstm", 1024),
    *(Case("sm_90", fp32, "slstm", D, resets=True) for D in (64, 128, 512)), Case("sm_90", fp32, "gru", 512),
    *(Case(target, bf16, "slstm", 512, resets=True) for target in ("sm_80", "sm_100", "sm_120", "gfx942")),
    *(Case(target, fp32, "slstm", 64) for target in ("sm_80", "sm_100", "sm_120", "gfx942")),
    *(Case("sm_90", fp32, "slstm", D, tf32=True) for D in (32, 128)),
    *(Case(target, fp32, "slstm", 64, tf32=True) for target in ("sm_80", "sm_100", "sm_120")),
)

TMEM_COLUMNS = 512
"""Of the tensor memory of a Blackwell multiprocessor."""
KNOWN_SPILLS = {} if Version(triton.__version__) >= Version("3.9") else {
    (Case("sm_90", fp32, "lstm", 1024), True): 16, (Case("sm_90", fp32, "slstm", 512, resets=True), False): 8,
}
"""``(case, backward)`` -> bytes of spilled registers, where a kernel has any: at 128 registers a thread the older
version's assembler keeps room for a second program, which has none here."""

FORWARD, BACKWARD = launch.recurrence_fwd_kernel, launch.recurrence_bwd_kernel


class _Recorder:
    """Takes the place of a kernel and keeps what it is called with."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self._call

    def _call(self, *arguments, **named):
        self.options = {name: named.pop(name) for name in launch.OPTIONS if name in named}
        self.arguments = dict(zip(self.kernel.arg_names, arguments)) | named


def calls(case):
    """``(kernel, arguments, options)`` of both passes, as the backend would launch them for two steps."""
    G, D, B = config.GATES, case.D, case.B
    wx, weight = torch.zeros(2 * B, 1, G, 1, D, dtype=case.dtype), torch.zeros(1, G, 1, D, D, dtype=case.dtype)
    reset = torch.zeros(2 * B, dtype=torch.uint8) if case.resets else None
    rest = (weight, None, None, reset, None, None, False, None)
    options = Rows.dense(2, B, False), case.cell, False
    recorders = _Recorder(FORWARD), _Recorder(BACKWARD)
    names = "recurrence_fwd_kernel", "recurrence_bwd_kernel", "device_of", "precision"
    before = [getattr(launch, name) for name in names]
    try:
        launch.recurrence_fwd_kernel, launch.recurrence_bwd_kernel = recorders
        launch.device_of = lambda device: TARGETS[case.target][1]
        launch.precision = lambda: "tf32" if case.tf32 else "ieee"
        if case.I:
            assert config.takes_input(D, case.I, case.dtype.itemsize, TARGETS[case.target][1])
            input = (torch.zeros(shape, dtype=case.dtype) for shape in ((2 * B, case.I), (G * D, case.I), (G * D,)))
            output, _, _, pre, states = launch.forward_from_input(True, *input, *rest, *options)
        else:
            output, _, _, pre, states = launch.forward(True, wx, *rest, *options)
        launch.backward(*rest, pre, states, output, output, None, None, None, None, *options)
    finally:
        for name, value in zip(names, before):
            setattr(launch, name, value)
    return [(each.kernel, each.arguments, each.options) for each in recorders]


def needs(case, backward):
    """``(arguments, options, resources)`` of one pass, with the seconds of CPU time that it took to compile."""
    kernel, arguments, options = calls(case)[backward]
    start = cpu_seconds()
    binary = compiled(kernel, arguments, case.target, **options)
    return arguments, options, {"seconds": cpu_seconds() - start} | resources(binary)


def over_budget(case, backward, need):
    """What a GPU would refuse or regret, in words."""
    limit = TARGETS[case.target][1].shared_limit
    stack = KNOWN_SPILLS.get((case, backward), 0)
    return [words for words, wrong in (
        (f"{need['shared']} bytes of shared memory, {limit} are there", need["shared"] > limit),
        (f"{need['tmem']} columns of tensor memory, {TMEM_COLUMNS} are there", need["tmem"] > TMEM_COLUMNS),
        (f"{need['stack']} bytes of spills, {stack} are allowed", need["stack"] > stack),
        ("no matrix instruction", (case.dtype != fp32 or case.tf32) and need["mma"] == 0)) if wrong]


def main():
    # Not from Triton's cache, so that the seconds are those of a first call.
    knobs.compilation.always_compile = True
    print(f"{'target':7} {'dtype':8} {'cell':5} {'D':>4} {'I':>2} {'B':>3} resets pass {'tile':>7} slices warps "
          f"{'shared':>7} {'of':>7} registers stack mma tmem {'CPU s':>5}")
    failures = []
    for case in CASES:
        for backward in (False, True):
            arguments, options, need = needs(case, backward)
            dtype = "tf32" if case.tf32 else str(case.dtype).removeprefix("torch.")
            name = (f"{case.target:7} {dtype:8} {case.cell:5} {case.D:>4} {case.I:>2} {case.B:>3} "
                    f"{'yes' if case.resets else 'no':>6} {'bwd' if backward else 'fwd':>4}")
            print(f"{name} {arguments['BLOCK_B']:>3}x{arguments['BLOCK_U']:<3} {arguments['slices']:>6} "
                  f"{options['num_warps']:>5} {need['shared']:>7} {TARGETS[case.target][1].shared_limit:>7} "
                  f"{need['registers']:>9} {need['stack']:>5} {need['mma']:>3} {need['tmem']:>4} "
                  f"{need['seconds']:>5.1f}", flush=True)
            failures += [f"{' '.join(name.split())}: {words}" for words in over_budget(case, backward, need)]
    sys.exit("\n".join(failures) or None)


if __name__ == "__main__":
    main()
