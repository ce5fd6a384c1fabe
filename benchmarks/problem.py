"""The numbers of a case: the same input, parameters and cotangents for every contestant, and what counts as wrong."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from xlstm_fused import FusedxLSTM

from .cases import Case

DTYPES = {"fp32": torch.float32, "bf16-R": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
          "autocast": torch.float32, "fp64": torch.float64}
PRECISIONS = ("fp32", "bf16-R", "bf16", "fp16", "autocast")
"""bf16-R is fp32 but for the recurrent matrix, by the option ``recurrent_dtype``."""
AUTOCAST = torch.bfloat16

LIMITS = {"fp32": 1e-4, "bf16-R": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 2e-2, "autocast": 5e-2}
"""The largest error, relative to the norm of the true result, that is rounding and not a mistake. How exact each
contestant is belongs to the tests; this only keeps wrong results from being timed."""


class Problem:
    """All tensors are drawn as bfloat16, which every dtype here holds exactly, so one truth serves all precisions."""

    # To numbers of full length: kernels may take less of weights that happen to be shorter.
    _LONGER = 1 + 2**-23

    def __init__(self, case: Case, device: str):
        self.case, self.device = case, device
        generator = torch.Generator().manual_seed(1)

        def draw(*shape, scale=1.0):
            return (torch.randn(shape, generator=generator) * scale).bfloat16().to(device)

        with torch.random.fork_rng(devices=[]):
            layer = FusedxLSTM(case.I, case.H, case.L, bidirectional=case.bidirectional, cell=case.cell,
                               num_heads=case.N, backend="reference")
        self._parameters = {name: draw(*value.shape, scale=0.5 * value.shape[-1]**-0.5)
                            for name, value in layer.named_parameters()}
        self.batch_lengths = torch.tensor(case.lengths)
        self._x = draw(case.T, case.B, case.I)
        self._packing = None
        if case.ragged == "packed":
            packed = pack_padded_sequence(self._x, self.batch_lengths)
            self._x, self._packing = packed.data, packed.batch_sizes
        rows = self._x.shape[:-1]
        self.reset = (torch.rand(rows, generator=generator) < case.resets).to(device) if case.resets else None
        self._cotangent = draw(*rows, case.K * case.H)
        self._state = [draw(case.L * case.K, case.B, case.H) for _ in "hc"] if case.state else None

    def input(self, precision: str) -> tuple[Tensor, Tensor | PackedSequence]:
        """A new leaf, and the layer's input made of it: itself, or a PackedSequence with it as data."""
        leaf = self._x.to(DTYPES[precision], copy=True).requires_grad_()
        return leaf, leaf if self._packing is None else PackedSequence(leaf, self._packing)

    def parameters(self, precision: str) -> dict[str, Tensor]:
        longer = self._LONGER if precision == "fp32" else 1
        return {name: value.to(DTYPES[precision], copy=True).mul_(longer) for name, value in self._parameters.items()}

    def state(self, precision: str) -> tuple[Tensor, ...] | None:
        return self._state and tuple(value.to(DTYPES[precision]) for value in self._state)

    def cotangent(self, dtype: torch.dtype) -> Tensor:
        return self._cotangent.to(dtype)

    @functools.cached_property
    def lengths(self) -> Tensor:
        """On the device, for a contestant that takes them there; ``batch_lengths`` is on the CPU."""
        return self.batch_lengths.to(self.device)


def worst_error(results: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative error of any result that the contestant gives, and what it is of; NaN counts as inf."""
    errors = {}
    for name, value in results.items():
        expected = truth[name]
        if value.shape != expected.shape:
            return float("inf"), f"{name}: shape {tuple(value.shape)} instead of {tuple(expected.shape)}"
        error = ((value - expected).norm() / expected.norm().clamp(min=1e-30)).item()
        errors[name] = error if error == error else float("inf")
    name = max(errors, key=errors.get)
    return errors[name], name
