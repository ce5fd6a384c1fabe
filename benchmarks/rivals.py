"""Recurrences of other packages, as layers: each is given the same input and parameters as nn.LSTM.

What a user of theirs pays is inside: the input product, and whatever copies bring it into their layout. Parameters lie
in their own layout from the start.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from . import machine
from .cases import Case
from .problem import DTYPES, Problem
from .ready import Ready

PACKAGES = {"cpu": ("flashrnn", "xlstm"), "cuda": ("flashrnn", "xlstm", "torchrl", "haste_pytorch")}
COMPILE_SECONDS = 420
"""nvcc builds the CUDA kernels of flashrnn and xlstm at the first call of each shape."""


def _leaves(native, problem: Problem, precision: str) -> dict:
    return {name: value.detach().contiguous().requires_grad_()
            for name, value in native(problem.parameters(precision)).items()}


def flashrnn(problem: Problem, precision: str, backend: str) -> Ready:
    from flashrnn import flashrnn as run

    case = problem.case
    N, D = case.N, case.H // case.N

    def native(parameters):
        # Gates are i, f, z, o as ours; R is (G, N, D_out, D_in).
        return {"weight": parameters["weight_ih_l0"], "R": parameters["weight_hh_l0"].view(4, N, D, D),
                "bias": (parameters["bias_ih_l0"] + parameters["bias_hh_l0"]).view(4, N, D)}

    leaves = _leaves(native, problem, precision)
    x, input = problem.input(precision)
    dtype = str(DTYPES[precision]).removeprefix("torch.")

    def forward():
        wx = F.linear(input, leaves["weight"]).view(case.T, case.B, 4, N, D).transpose(0, 1)
        states, last = run(wx, leaves["R"], leaves["bias"], function=case.cell, backend=backend, dtype=dtype)
        # (S, B, T, N, D) and (S, B, 1, N, D).
        return states[0].transpose(0, 1).flatten(2), tuple(last.squeeze(2).flatten(2).unsqueeze(1).unbind(0))

    return Ready(problem, forward, x, leaves, native)


def xlstm(problem: Problem, precision: str, backend: str) -> Ready:
    from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

    case = problem.case
    N, D = case.N, case.H // case.N
    modules = [sLSTMCell(sLSTMCellConfig(
        hidden_size=case.H, num_heads=N, backend=backend, batch_size=case.B, bias_init="standard",
        input_shape="SBGNH", output_shape="SBH", dtype=str(DTYPES[precision]).removeprefix("torch."),
        enable_automatic_mixed_precision=backend == "cuda")) for _ in range(case.L)]

    def native(parameters):
        made = {}
        for layer in range(case.L):
            weight, R, *biases = (parameters[f"{name}_l{layer}"]
                                  for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            R, bias = R.view(4, N, D, D), sum(biases).view(4, N, D)
            if backend == "vanilla":
                R, bias = R.transpose(0, 1).flatten(1, 2), bias.flatten()
            else:
                R, bias = R.permute(1, 3, 0, 2).flatten(2), bias.transpose(0, 1).flatten()
            made |= {f"{layer} weight": weight, f"{layer} _recurrent_kernel_": R, f"{layer} _bias_": bias}
        return made

    leaves = _leaves(native, problem, precision)
    for name, value in leaves.items():
        layer, attribute = name.split()
        if attribute != "weight":
            leaves[name] = nn.Parameter(value.detach())
            setattr(modules[int(layer)], attribute, leaves[name])
    x, input = problem.input(precision)

    def forward():
        output, finals = input, []
        for layer, module in enumerate(modules):
            output, last = module(F.linear(output, leaves[f"{layer} weight"]))
            finals.append(last)
        return output, tuple(torch.stack(finals, 1).unbind(0))

    return Ready(problem, forward, x, leaves, native)


def torchrl(problem: Problem, precision: str) -> Ready:
    from torchrl.modules.tensordict_module._rnn_triton import lstm_triton

    case = problem.case
    names = [f"{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    leaves = {name: value.requires_grad_() for name, value in problem.parameters("fp32").items()}
    x, input = problem.input("fp32")
    begins = torch.zeros(case.B, case.T, dtype=torch.bool, device=problem.device)
    if problem.reset is not None:
        begins = problem.reset.t().contiguous()
    # What the states become at each reset.
    zeros = torch.zeros(case.B, case.T, case.H, device=problem.device)
    compute = torch.bfloat16 if precision == "bf16" else torch.float32

    def forward():
        h, _, h_n, c_n = lstm_triton(input.transpose(0, 1).contiguous(), zeros, zeros,
                                     *(leaves[name] for name in names), begins, compute)
        return h.transpose(0, 1), (h_n.unsqueeze(0), c_n.unsqueeze(0))

    return Ready(problem, forward, x, leaves)


def haste(problem: Problem, precision: str) -> Ready:
    import haste_pytorch

    case = problem.case
    module = haste_pytorch.LSTM(case.I, case.H).to(problem.device)

    def native(parameters):
        # Gates are i, g, f, o, and matrices (in, out).
        def reordered(value):
            i, f, g, o = value.chunk(4)
            return torch.cat((i, g, f, o))

        return {"kernel": reordered(parameters["weight_ih_l0"]).t(),
                "recurrent_kernel": reordered(parameters["weight_hh_l0"]).t(),
                "bias": reordered(parameters["bias_ih_l0"] + parameters["bias_hh_l0"])}

    leaves = {}
    for name, value in _leaves(native, problem, precision).items():
        leaves[name] = nn.Parameter(value.detach())
        setattr(module, name, leaves[name])
    x, input = problem.input(precision)
    return Ready(problem, lambda: module(input), x, leaves, native)


def _one_layer(case: Case, cells: tuple[str, ...], heads: bool = True, resets: bool = False,
               layers: bool = False) -> str | None:
    if case.cell not in cells:
        return f"no {case.cell}"
    if case.N > 1 and not heads:
        return "one head only"
    if case.resets and not resets:
        return "no resets"
    plain = case.K == 1 and not case.ragged and not case.state
    return None if plain and (layers or case.L == 1) else "one dense layer in one direction from a zero state only"


def installed(device: str) -> list[dict]:
    """The arguments of :class:`~benchmarks.contestants.Contestant` for each that is installed."""
    both = partial(_one_layer, cells=("lstm", "slstm"))
    found = []
    if device == "cpu":
        found += [
            dict(name="FlashRNN vanilla", package="flashrnn", build=partial(flashrnn, backend="vanilla"), refuses=both,
                 is_loop=True),
            dict(name="xlstm vanilla", package="xlstm", build=partial(xlstm, backend="vanilla"),
                 refuses=partial(_one_layer, cells=("slstm",), layers=True), precisions=("fp32", "bf16"), is_loop=True),
        ]
    else:
        found += [
            dict(name="FlashRNN triton_fused", package="flashrnn", build=partial(flashrnn, backend="triton_fused"),
                 refuses=both, precisions=("bf16", "fp16"), build_seconds=300),
            dict(name="torchrl Triton LSTM", package="torchrl", build=torchrl, precisions=("fp32", "bf16"),
                 refuses=partial(_one_layer, cells=("lstm",), heads=False, resets=True), build_seconds=300),
            dict(name="haste", package="haste_pytorch", build=haste,
                 refuses=partial(_one_layer, cells=("lstm",), heads=False)),
            *(dict(name=f"FlashRNN {backend}", package="flashrnn", build=partial(flashrnn, backend=backend),
                   refuses=both, precisions=("bf16",), build_seconds=COMPILE_SECONDS)
              for backend in ("cuda_fused", "cuda")),
            dict(name="xlstm cuda", package="xlstm", build=partial(xlstm, backend="cuda"),
                 refuses=partial(_one_layer, cells=("slstm",)), precisions=("bf16",), build_seconds=COMPILE_SECONDS),
        ]
    return [options for options in found if machine.version(options["package"]) is not None]
