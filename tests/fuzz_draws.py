"""Random calls of the public API: what to call, with which options, in which form, and with which mistake if any."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from xlstm_fused import FusedxLSTM, FusedxLSTMCell, recurrence
from xlstm_fused.backends import cpu
from xlstm_fused.cells import CELLS
from xlstm_fused.dtypes import state_dtype

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MODES = {"grad": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}
MISTAKES = ("input dtype", "input dimensions", "input features", "no step", "state count", "state batch", "state dtype",
            "state type", "lengths range", "lengths count", "lengths dtype", "cu_seqlens end", "cu_seqlens order",
            "reset shape", "reset value", "reset_state alone", "reset_state shape", "heads", "backend")


@dataclass(frozen=True)
class Draw:
    """One call. Tensors are made from ``seed``."""

    api: str
    cell: str
    dtype: torch.dtype
    T: int
    B: int
    I: int
    N: int
    D: int
    L: int
    bidirectional: bool
    proj_size: int
    options: dict
    layout: str
    batch_first: bool
    form: str
    lengths: tuple
    reset: str
    reset_state: str
    hx: str
    trace: bool
    training: bool
    mode: str
    isa: str
    split: tuple
    mistake: str
    seed: int

    @property
    def H(self):
        return self.N * self.D

    @property
    def K(self):
        return 1 + self.bidirectional

    @property
    def is_unbatched(self):
        return self.layout == "unbatched"


sizes = st.one_of(st.integers(1, 5), st.integers(1, 9), st.sampled_from((16, 17, 33)))
# The reference takes as long as there are steps: few for most.
steps = st.sampled_from((1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 7, 16))


@st.composite
def draws(draw, api=None):
    def some(*values):
        return draw(st.sampled_from(values))

    api, cell = api or some("layer", "layer", "layer", "recurrence", "cell"), some(*CELLS)
    N, D = some(1, 1, 2, 3), draw(sizes)
    layouts = {"layer": ("dense", "dense", "unbatched", "lengths", "lengths", "packed", "packed unsorted",
                         "cu_seqlens"),
               "recurrence": ("dense", "unbatched", "lengths", "cu_seqlens"), "cell": ("dense", "unbatched")}
    layout = some(*layouts[api])
    T, B = 1 if api == "cell" else draw(steps), draw(st.one_of(st.integers(0, 5), st.sampled_from((17, 17, 17, 127))))
    B = 1 if layout == "unbatched" else max(B, 1) if layout in ("packed", "packed unsorted", "cu_seqlens") else B
    lengths = tuple(draw(st.lists(st.integers(layout.startswith("packed"), T), min_size=B, max_size=B)))
    bidirectional = api != "cell" and some(False, False, True)
    options, proj_size, L = {}, 0, some(1, 1, 1, 2, 2, 3) if api == "layer" else 1
    if api == "layer":
        options = dict(bias=some(True, True, False), dropout=some(0.0, 0.0, 0.5, 1.0), residual=some(False, True),
                       layer_norm=some(False, False, True), recurrent_dropout=some(0.0, 0.0, 0.4),
                       forget_bias=some(None, 1.0), checkpoint_every=some(None, None, 1, 2, 5),
                       recurrent_dtype=some(None, None, None, torch.bfloat16))
        if N == 1 and D > 1 and cell != "gru" and some(True, False, False):
            proj_size = draw(st.integers(1, D - 1))
            options |= dict(recurrent_dropout=0.0, checkpoint_every=None)
        if L == 1:
            options["dropout"] = 0.0  # torch warns of any other
        if (1 + bidirectional) * (proj_size or N * D) < 3:
            options["layer_norm"] = False  # of one or two features it is a constant, its gradients rounding errors
        if not options["bias"] or "f" not in CELLS[cell].gates:
            options["forget_bias"] = None
    mistake = some(*["none"] * 4 * len(MISTAKES), *MISTAKES)
    if layout.startswith("packed") and mistake in ("input dimensions", "no step"):
        mistake = "none"  # it is torch that would pack such an input, or not
    return Draw(
        api=api, cell=cell, dtype=some(DTYPES[0], DTYPES[0], DTYPES[1], *DTYPES), T=T, B=B,
        I=draw(sizes), N=N, D=D,
        L=L, bidirectional=bidirectional,
        proj_size=proj_size, options=options, layout=layout, batch_first=api != "cell" and some(False, True),
        form=some("contiguous", "transposed", "strided", "expanded", "overlapping"), lengths=lengths,
        reset="none" if api == "cell" else some("none", "none", "bool", "uint8", "float"),
        reset_state=some("none", "per sequence", "per row"),
        hx=some("none", "tuple", "tuple", "list", "by layer", "strided"),
        trace=api != "cell" and some(False, False, True), training=some(True, True, False),
        mode=some("grad", "grad", "grad", "no_grad", "inference"), isa=some("", *cpu._cpu.isas()),
        split=some(*[()] * 17, (2, 2), (3, 3), (2, 1)), mistake=mistake,
        seed=draw(st.integers(0, 2**32 - 1)))


def formed(value, form):
    """A tensor of the same shape whose memory is of another form; its values may be others."""
    if form == "transposed" and value.dim() > 1:
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    if form == "strided":
        return value.repeat_interleave(2, -1)[..., ::2]
    if form == "expanded" and value.dim() > 1 and value.shape[0]:
        return value[:1].expand_as(value)
    if form == "overlapping" and value.dim() > 1 and value.numel():
        # Each step begins one element after the last: sliding windows, as unfold() gives.
        flat, rest = value.flatten(), value[0].numel()
        return flat[:rest + len(value)].as_strided(value.shape, (1, *value[0].contiguous().stride()))
    return value


class Arguments:
    """The tensors of one draw, in float64: the same numbers for every dtype, rounded to the draw's own."""

    def __init__(self, draw: Draw):
        self.draw, self.leaves = draw, {}
        self.random = torch.Generator().manual_seed(draw.seed)
        kind = CELLS[draw.cell]
        self.H = draw.H
        width = len(kind.gates) * draw.H if draw.api == "recurrence" else draw.I
        self.rows = sum(draw.lengths)
        if draw.layout == "cu_seqlens" or draw.is_unbatched:
            time = (self.rows if draw.layout == "cu_seqlens" else draw.T,)
        else:
            time = (draw.B, draw.T) if draw.batch_first else (draw.T, draw.B)
        if draw.api == "cell":
            time = () if draw.is_unbatched else (draw.B,)
        self.time, self.batch = time, () if draw.is_unbatched else (draw.B,)
        mistake = draw.mistake
        x = self.leaf("x", *time, width + (mistake == "input features"), form=draw.form)
        if mistake == "no step" and x.dim() > 1:
            x = x.narrow(int(draw.batch_first and x.dim() == 3), 0, 0)
        if mistake == "input dimensions":
            x = x[None, None]
        self.input = x
        self.hx = None if draw.hx == "none" else self.state("hx")
        self.keywords = {}
        if draw.api != "cell":
            self._sequences()
            self._resets()

    def randn(self, *shape):
        value = torch.randn(*shape, generator=self.random, dtype=torch.float64)
        return value.to(self.draw.dtype).double()

    def leaf(self, name, *shape, form="contiguous", positive=False, dtype=None):
        value = self.randn(*shape)
        value = formed(value.abs() + 0.5 if positive else value, form)
        self.leaves[name] = value, dtype
        return value

    def state(self, name, lead=None):
        """A tuple of states; ``lead`` are the sizes of one that is per row."""
        draw, kind = self.draw, CELLS[self.draw.cell]
        layers = (draw.L * draw.K,) if draw.api == "layer" else ()
        batch, mistake = self.batch, draw.mistake
        if mistake == "state batch" and batch or mistake == "reset_state shape" and name == "reset_state":
            batch = (draw.B + 1,) if batch else (2,)
        values = []
        for index, part in enumerate(kind.states):
            size = draw.proj_size if index == 0 and draw.proj_size else draw.H
            shape = (*layers, *batch, size) if lead is None else (*lead, *layers, size)
            wide = index and draw.seed % 2 and draw.dtype != torch.float64
            values.append(self.leaf(f"{name}[{part}]", *shape, form="strided" if draw.hx == "strided" else "contiguous",
                                    positive=part == "n", dtype=state_dtype(draw.dtype) if wide else None))
        if mistake == "state count":
            values.pop()
        return tuple(values)

    def _sequences(self):
        draw, mistake = self.draw, self.draw.mistake
        lengths = list(draw.lengths)
        if draw.layout == "lengths":
            if mistake == "lengths range" and lengths:
                lengths[0] = (-1, draw.T + 1)[draw.seed % 2]
            if mistake == "lengths count":
                lengths.append(1)
            dtype = torch.float32 if mistake == "lengths dtype" else (torch.int64, torch.int32)[draw.seed % 2]
            self.keywords["lengths"] = lengths if draw.seed % 3 == 0 and lengths else torch.tensor(lengths, dtype=dtype)
        if draw.layout == "cu_seqlens":
            ends = [0, *accumulate(lengths)]
            if mistake == "cu_seqlens end":
                ends[-1] += 1
            if mistake == "cu_seqlens order":
                ends.insert(1, self.rows + 1)
            self.keywords["cu_seqlens"] = torch.tensor(ends, dtype=torch.int64)

    def _resets(self):
        draw, mistake = self.draw, self.draw.mistake
        time = (self.rows,) if draw.layout.startswith("packed") else self.time
        if draw.reset != "none":
            flags = torch.rand(time, generator=self.random) < 0.3
            if mistake == "reset shape":
                flags = flags[None]
            flags = flags.to({"bool": torch.bool, "uint8": torch.uint8, "float": torch.float32}[draw.reset])
            if mistake == "reset value" and flags.dtype != torch.bool and flags.numel():
                flags = flags + 2
            self.keywords["reset"] = flags
        if draw.reset_state != "none" and (draw.reset != "none" or mistake == "reset_state alone"):
            self.keywords["reset_state"] = self.state("reset_state", time if draw.reset_state == "per row" else None)

    def packed(self, data):
        draw = self.draw
        if not draw.layout.startswith("packed"):
            return data
        lengths = list(draw.lengths) if draw.layout == "packed unsorted" else sorted(draw.lengths, reverse=True)
        return pack_padded_sequence(data, lengths, draw.batch_first, draw.layout == "packed")

    def alone(self, states):
        """The state of a cell with one may be given by itself as well."""
        return states[0] if isinstance(states, tuple) and len(states) == 1 and self.draw.seed % 2 else states

    def call(self, backend, dtype, make_module):
        """``(results by name, gradients by name)`` in ``dtype``; gradients only in the draw's mode with gradients."""
        draw = self.draw
        if draw.mistake == "input dtype":
            dtype_of_input = torch.float16 if dtype == torch.float64 else torch.float64
        else:
            dtype_of_input = dtype
        leaves, replaced = {}, {}
        for name, (value, own) in self.leaves.items():
            own = torch.float64 if own is not None and dtype == torch.float64 else own or dtype
            if draw.mistake == "state dtype" and name.startswith("hx"):
                own = torch.int64
            own = dtype_of_input if name == "x" else own
            # Strides and overlaps are the point of some: a detached copy of the same form, not a dense one.
            cast = torch.empty_strided(value.shape, value.stride(), dtype=own)
            if value.numel():
                storage = torch.as_strided(value, (value.untyped_storage().nbytes() // 8,), (1,), 0).to(own)
                cast = torch.as_strided(storage, value.shape, value.stride(), value.storage_offset())
            leaves[name] = cast.requires_grad_() if own.is_floating_point else cast
            replaced[id(value)] = leaves[name]

        def now(value):
            if isinstance(value, tuple):
                return tuple(map(now, value))
            return replaced.get(id(value), value)

        x = leaves["x"]
        if self.input is not self.leaves["x"][0]:
            x = x[None, None] if draw.mistake == "input dimensions" else x.narrow(
                int(draw.batch_first and x.dim() == 3), 0, 0)
        hx, keywords = now(self.hx), {name: self.alone(now(value)) for name, value in self.keywords.items()}
        if hx is not None:
            if draw.mistake == "state type":
                hx = (*hx[:-1], "no tensor")
            elif draw.hx == "by layer" and draw.api == "layer" and draw.mistake == "none":
                hx = [tuple(part.unflatten(0, (draw.L, draw.K))[layer].squeeze(0) if draw.K == 1 else
                            part.unflatten(0, (draw.L, draw.K))[layer] for part in hx) for layer in range(draw.L)]
            elif draw.hx == "list":
                hx = list(hx)
            else:
                hx = self.alone(hx)
        torch.manual_seed(draw.seed)
        with MODES[draw.mode]():
            module, results = make_module(self, backend, dtype, self.packed(x), hx, keywords)
        wanted = leaves | (dict(module.named_parameters()) if module is not None else {})
        if draw.mode != "grad":
            return results, {}
        return results, self.gradients(results, {name: value for name, value in wanted.items() if value.requires_grad})

    def gradients(self, results, wanted):
        random = torch.Generator().manual_seed(self.draw.seed)
        outputs = {name: value for name, value in results.items() if value.requires_grad}
        # 16-bit rounding moves slstm's raw states across their kink, where i == log f + m: h has none.
        narrow = self.draw.dtype.itemsize == 2 and self.draw.cell == "slstm"
        cotangents = []
        for name, value in outputs.items():
            cotangent = torch.randn(value.shape, generator=random, dtype=torch.float64).to(value.dtype)
            cotangents.append(cotangent * 0 if narrow and name not in ("output", "h") else cotangent)
        if not outputs:
            return {}
        gradients = torch.autograd.grad(list(outputs.values()), list(wanted.values()), cotangents, allow_unused=True)
        return dict(zip(wanted, gradients))


def named(draw, state):
    """States by name; a module gives the state of a cell with one by itself."""
    return dict(zip(CELLS[draw.cell].states, state if isinstance(state, tuple) else (state,)))


def run_layer(arguments, backend, dtype, x, hx, keywords):
    draw = arguments.draw
    if draw.mistake == "heads":
        FusedxLSTM(draw.I, draw.H, num_heads=draw.H + 1)
    module = _rounded(draw, FusedxLSTM(
        draw.I, draw.H, draw.L, batch_first=draw.batch_first, bidirectional=draw.bidirectional,
        proj_size=draw.proj_size, cell=draw.cell, num_heads=draw.N,
        backend="cuda" if draw.mistake == "backend" else backend, **draw.options), dtype)
    module.train(draw.training)
    output, state, *trace = module(x, hx, **keywords, trace=draw.trace)
    results = {"output": output.data if isinstance(output, PackedSequence) else output}
    results |= named(draw, state)
    for layer, each in enumerate(trace[0] if trace else ()):
        results |= {f"trace[{layer}].{name}": value for name, value in (each.gates | each.states).items()}
    return module, results


def run_recurrence(arguments, backend, dtype, wx, hx, keywords):
    draw = arguments.draw
    values = torch.randn(len(CELLS[draw.cell].gates) * draw.H, draw.D) / draw.D**0.5
    weight = nn.ParameterDict({"weight_hh": nn.Parameter(values.to(draw.dtype).to(dtype))})
    if draw.layout != "cu_seqlens":
        keywords = keywords | {"batch_first": draw.batch_first}
    output, state, *trace = recurrence(
        wx, weight["weight_hh"], hx, cell=draw.cell, num_heads=draw.H + 1 if draw.mistake == "heads" else draw.N,
        reverse=draw.bidirectional, trace=draw.trace, backend="cuda" if draw.mistake == "backend" else backend,
        **keywords)
    results = {"output": output} | named(draw, state)
    if trace:
        results |= {f"trace.{name}": value for name, value in (trace[0].gates | trace[0].states).items()}
    return weight, results


def run_cell(arguments, backend, dtype, x, hx, keywords):
    draw = arguments.draw
    module = _rounded(draw, FusedxLSTMCell(draw.I, draw.H, cell=draw.cell,
                                           num_heads=draw.H + 1 if draw.mistake == "heads" else draw.N), dtype)
    return module, named(draw, module(x, hx))


def _rounded(draw, module, dtype):
    """The module in ``dtype``, its numbers rounded to the draw's own dtype."""
    return module.to(draw.dtype).to(dtype)


RUN = {"layer": run_layer, "recurrence": run_recurrence, "cell": run_cell}
