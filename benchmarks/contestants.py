"""Who is measured: our backends, torch's own modules, and the packages in :mod:`benchmarks.rivals`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xlstm_fused import FusedxLSTM, FusedxLSTMCell
from xlstm_fused.backends import ORDER, refuses
from xlstm_fused.cells import CELLS
from xlstm_fused.dtypes import state_dtype

from . import machine, rivals
from .cases import Case
from .problem import AUTOCAST, DTYPES, PRECISIONS, Problem
from .ready import Ready

LOOP_STEPS, QUICK_LOOP_STEPS = 2048, 150
"""Contestants that run Python at every step are left out beyond this many."""


@dataclass(frozen=True)
class Contestant:
    """``build(problem, precision)`` makes it ready; ``refuses(case)`` says why it cannot run one, or None."""

    name: str
    package: str
    build: Callable[[Problem, str], Ready]
    refuses: Callable[[Case], str | None]
    precisions: tuple[str, ...] = ("fp32",)
    is_ours: bool = False
    is_loop: bool = False
    build_seconds: float = 120
    """How long the first call may take, compilers included, before it counts as hung."""

    @property
    def version(self) -> str:
        return f"{self.package} {machine.versions('cpu').get(self.package, '')}".strip()

    def reason(self, case: Case, precision: str, loop_steps: int = LOOP_STEPS) -> str | None:
        """Why it does not run this; None if it does."""
        if precision not in self.precisions:
            return f"no {precision}"
        if self.is_loop and case.T > loop_steps:
            return f"a loop in Python of more than {loop_steps} steps"
        return self.refuses(case)


def under(precision: str, problem: Problem):
    return torch.autocast(problem.device, AUTOCAST) if precision == "autocast" else nullcontext()


def load_parameters(module: nn.Module, problem: Problem, precision: str) -> nn.Module:
    module = module.to(device=problem.device, dtype=DTYPES[precision])
    module.load_state_dict(problem.parameters(precision))
    return module


def compiled(function):
    # Each case counts as a recompilation, of which Dynamo allows few.
    torch._dynamo.reset()
    return torch.compile(function)


def ours(problem: Problem, precision: str, backend: str, compile: bool = False) -> Ready:
    case = problem.case
    layer = load_parameters(FusedxLSTM(case.I, case.H, case.L, bidirectional=case.bidirectional, cell=case.cell,
                                       num_heads=case.N, backend=backend,
                                       recurrent_dtype=torch.bfloat16 if precision == "bf16-R" else None),
                            problem, precision)
    run = compiled(layer) if compile else layer
    x, input = problem.input(precision)
    state = problem.state(precision)
    options = {"reset": problem.reset} if case.resets else {}
    if case.ragged == "padded":
        options["lengths"] = problem.lengths

    def forward():
        with under(precision, problem):
            return run(input, state, **options)

    return Ready(problem, forward, x, dict(layer.named_parameters()))


def nn_lstm(problem: Problem, precision: str, compile: bool = False) -> Ready:
    case = problem.case
    layer = load_parameters(nn.LSTM(case.I, case.H, case.L, bidirectional=case.bidirectional), problem, precision)
    layer.flatten_parameters()
    run = compiled(layer) if compile else layer
    x, input = problem.input(precision)
    state = problem.state(precision)

    def forward():
        with under(precision, problem):
            if case.ragged != "padded":
                return run(input, state)
            # What a user of nn.LSTM writes for a padded batch.
            packed, final = run(pack_padded_sequence(input, problem.batch_lengths, enforce_sorted=False))
            return pad_packed_sequence(packed, total_length=case.T)[0], final

    return Ready(problem, forward, x, dict(layer.named_parameters()))


def cell_loop(problem: Problem, precision: str, kind: type[nn.Module] = nn.LSTMCell) -> Ready:
    """The loop over time that reinforcement learning runs where episodes end inside of a rollout."""
    case = problem.case
    cell = kind(case.I, case.H).to(problem.device, DTYPES[precision])
    leaves = {f"{name}_l0": value for name, value in cell.named_parameters()}
    with torch.no_grad():
        for name, value in problem.parameters(precision).items():
            leaves[name].copy_(value)
    x, input = problem.input(precision)
    zeros = [torch.zeros(case.B, case.H, device=problem.device, dtype=x.dtype)] * 2
    state = [value[0] for value in problem.state(precision)] if case.state else zeros

    def forward():
        h, c = state
        outputs = []
        keep = [None] * case.T if problem.reset is None else (~problem.reset).to(h.dtype).unsqueeze(2).unbind(0)
        with under(precision, problem):
            for row, kept in zip(input.unbind(0), keep):
                h, c = cell(row, (h, c) if kept is None else (h * kept, c * kept))
                outputs.append(h)
        return torch.stack(outputs), (h.unsqueeze(0), c.unsqueeze(0))

    return Ready(problem, forward, x, leaves)


def compiled_step_loop(problem: Problem, precision: str) -> Ready:
    """What one writes who has no kernel: the definition of a cell's step under torch.compile, in a loop over time."""
    case, kind = problem.case, CELLS[problem.case.cell]
    leaves = {name: value.requires_grad_() for name, value in problem.parameters(precision).items()}
    x, input = problem.input(precision)
    dtypes = (x.dtype, *[state_dtype(x.dtype)] * (len(kind.states) - 1))

    @compiled
    def step(wx, R, *state):
        h = state[0].unflatten(1, (case.N, -1))
        pre = wx + torch.einsum("bnj,gnij->bgni", h, R).flatten(2)
        after = kind.step(tuple(pre.to(dtypes[-1]).unbind(1)), tuple(value.to(dtypes[-1]) for value in state))
        return tuple(value.to(dtype) for value, dtype in zip(after, dtypes))

    def forward():
        output, finals = input, []
        for layer in range(case.L):
            weight, R, *biases = (leaves[f"{name}_l{layer}"]
                                  for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            rows = F.linear(output, weight, sum(biases)).unflatten(2, (case.gates, -1))
            state = tuple(x.new_zeros(case.B, case.H, dtype=dtype) for dtype in dtypes)
            outputs, R = [], R.view(case.gates, case.N, case.H // case.N, -1)
            for row in rows.unbind(0):
                state = step(row, R, *state)
                outputs.append(state[0])
            output = torch.stack(outputs)
            finals.append(state)
        return output, tuple(torch.stack(parts) for parts in zip(*finals))

    return Ready(problem, forward, x, leaves)


def truth(problem: Problem) -> dict[str, Tensor]:
    """Output, final states and gradients in float64: of nn.LSTM, or with resets of a loop over nn.LSTMCell. Only sLSTM
    and heads, which torch does not have, are of our reference backend, itself tested against other packages."""
    case = problem.case
    if case.cell != "lstm" or case.N > 1:
        ready = ours(problem, "fp64", backend="reference")
    else:
        ready = (cell_loop if case.resets else nn_lstm)(problem, "fp64")
    return ready.results("training")


def _nn_lstm_refuses(case: Case) -> str | None:
    if case.cell != "lstm" or case.N > 1:
        return "LSTM with one head only"
    return "no resets" if case.resets else None


def _cell_loop_refuses(case: Case) -> str | None:
    dense = case.cell == "lstm" and case.N == case.L == case.K == 1 and not case.ragged
    return None if dense and (case.resets or case.T == 1) else "measured for resets and single steps of one layer"


def _compiled_step_refuses(case: Case) -> str | None:
    plain = case.cell == "slstm" and case.K == 1 and not (case.ragged or case.resets or case.state)
    return None if plain else "measured for dense sLSTM"


def _compiled_reference_refuses(case: Case) -> str | None:
    return "torch.compile unrolls the loop over time" if case.T > 128 else None


def _cell_is_not(cell: str, case: Case) -> str | None:
    return None if case.cell == cell else f"another contestant of this name runs {case.cell}"


def default_precisions(device: str) -> tuple[str, ...]:
    """Those that torch computes at speed on this kind of device."""
    if device == "cuda":
        return tuple(each for each in PRECISIONS if each != "bf16-R")
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ("fp32", "bf16") if fast else ("fp32",)


def roster(device: str, compile_reference: bool = False) -> list[Contestant]:
    """Everyone who is installed and runs on this kind of device, ours first."""
    anything = default_precisions(device) if device == "cuda" else ("fp32", "bf16-R", "bf16")
    found = []
    for name in ORDER:
        for cell in CELLS:
            able = tuple(each for each in anything if refuses(name, device, DTYPES[each], cell) is None)
            if able:
                is_loop = name == "reference"
                found.append(Contestant(
                    f"xlstm_fused {name}", "xlstm-fused", partial(ours, backend=name), partial(_cell_is_not, cell),
                    ("fp32",) if is_loop else able, is_ours=not is_loop, is_loop=is_loop))
    if compile_reference:
        found.append(Contestant("xlstm_fused reference, compiled", "xlstm-fused",
                                partial(ours, backend="reference", compile=True), _compiled_reference_refuses,
                                build_seconds=600))
    found += [
        Contestant("nn.LSTM", "torch", nn_lstm, _nn_lstm_refuses, default_precisions(device)),
        Contestant("nn.LSTM, compiled", "torch", partial(nn_lstm, compile=True), _nn_lstm_refuses,
                   build_seconds=300),
        Contestant("nn.LSTMCell loop", "torch", cell_loop, _cell_loop_refuses, is_loop=True),
        Contestant("compiled step loop", "torch", compiled_step_loop, _compiled_step_refuses, ("fp32", "bf16"),
                   is_loop=True, build_seconds=300),
        Contestant("FusedxLSTMCell loop", "xlstm-fused", partial(cell_loop, kind=FusedxLSTMCell), _cell_loop_refuses,
                   is_loop=True),
    ]
    return found + [Contestant(**options) for options in rivals.installed(device)]


def missing(device: str) -> list[str]:
    """The packages whose contestants would run on this kind of device, were they installed."""
    return [package for package in rivals.PACKAGES[device] if machine.version(package) is None]
