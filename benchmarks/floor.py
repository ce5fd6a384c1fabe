"""The least time that a case can take: what a measured time is held against.

On the CPU it is a roofline: the products at the rate of a large product, or everything that must go through memory at
the rate of a large copy, whichever takes longer, both measured beside the case. On a GPU what counts is the step: the
model of the time in which processors that share R exchange h once per step, with the input product before it.
"""

from __future__ import annotations

from .cases import Case

# Microseconds per step, forward and backward, on an H200 in bfloat16, by (H, B): the smaller of a cluster that pushes h
# and of data that carries its own flag through the second-level cache. A model made of published latencies, and not a
# measurement.
STEP_US = {
    (128, 1): (0.33, 0.36), (128, 16): (0.35, 0.39), (128, 64): (0.38, 0.42), (256, 16): (0.42, 0.57),
    (256, 64): (0.53, 0.66), (512, 1): (0.57, 0.62), (512, 16): (0.66, 0.88), (512, 64): (0.92, 1.27),
    (768, 16): (0.86, 1.17), (768, 64): (1.28, 1.80), (1024, 16): (1.03, 1.49), (1024, 64): (2.02, 3.49),
    (2048, 16): (2.50, 5.57), (2048, 64): (7.20, 7.80),
}
DEVICE = "H200"
"""The GPU of the model, by a part of its name."""


def traffic(case: Case, mode: str, itemsize: int) -> int:
    """Bytes that any implementation must move: input, output and parameters; in training the gradients of each, and
    the input and the output again."""
    rows, G = sum(case.lengths), case.gates
    widths = [case.I] + [case.K * case.H] * (case.L - 1)
    parameters = sum(case.K * G * case.H * (width + case.H // case.N + 2) for width in widths)
    ends = rows * (case.I + case.K * case.H)
    once = (ends + parameters) * itemsize
    return once if mode == "inference" else 3 * once - parameters * itemsize


def floor_ms(case: Case, mode: str, itemsize: int, device: str, gemm_gflops: float, copy_gbs: float) -> float | None:
    """Milliseconds; None on a GPU for a case that the model of the step does not have."""
    products = case.flops(mode) / gemm_gflops / 1e6
    if device == "cpu":
        return max(products, traffic(case, mode, itemsize) / copy_gbs / 1e6)
    step = STEP_US.get((case.H, case.B))
    if DEVICE not in device or not case.is_plain or itemsize != 2 or step is None:
        return None
    inputs = case.flops(mode) * case.I / (case.I + case.H) / gemm_gflops / 1e6
    # The gradient of R is a product over all rows as well.
    recurrent = case.flops("inference") * case.H / (case.I + case.H) / gemm_gflops / 1e6 if mode == "training" else 0.0
    return inputs + recurrent + case.T * (sum(step) if mode == "training" else step[0]) / 1e3
