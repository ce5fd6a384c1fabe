"""NaN, infinity, subnormal and huge numbers: they go where they go in the reference, and nowhere else."""

import pytest
import torch
from problems import LAYOUTS, RESETS, Problem
from test_reference import through_autograd, through_ops
from tolerances import assert_close

from xlstm_fused import FusedxLSTM, recurrence
from xlstm_fused.backends import backends
from xlstm_fused.cells import CELLS

BACKENDS = [name for name in ("reference", "cpu") if backends()[name].ready]
VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "1e30": 1e30, "subnormal": 1e-310}


def kinds(value):
    """0 for a finite number, else one of three for NaN and the infinities."""
    return value.isnan() * 1 + value.isposinf() * 2 + value.isneginf() * 3


def assert_same_kinds(got, expected, what):
    assert torch.equal(kinds(got), kinds(expected)), what
    finite = expected.isfinite()
    assert_close(got[finite], expected[finite], what)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the cpu backend is not built")
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("cell, where", [(cell, where) for cell, kind in CELLS.items() for where in (
    "wx", "weight_hh", "h0", "s0") if where != "s0" or len(kind.states) > 1])
@pytest.mark.parametrize("layout, reset", [(layout, RESETS[index % len(RESETS)]) for index, layout in enumerate(LAYOUTS)
                                           if layout != "no sequence"])
@pytest.mark.parametrize("value", VALUES)
def test_one_hostile_number_goes_where_it_goes_in_the_reference(cell, layout, reset, where, value):
    """Values. In float64: with 1e30 about, sums in float32 have no digit in common, whatever their order."""
    problem = Problem.random(cell, layout, 1, 2, 5, reset=reset)
    hostile = problem.tensors[where] = problem.tensors[where].clone()
    hostile.view(-1)[hostile.numel() // 3] = VALUES[value]
    values, expected = (function(problem.tensors, problem) for function in (
        lambda *arguments: through_ops(*arguments, "cpu"), through_autograd))
    for name, got, want in zip(("output", "h_n", "s_n", "pre", "states"), values, expected):
        assert_same_kinds(got, want, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("value", ("nan", "inf"))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16))
def test_a_sequence_keeps_what_it_has(backend, cell, value, dtype):
    """Values and gradients of the other sequences are the same bit for bit, and so is what precedes in its own."""
    T, B, H, row, step = 9, 5, 6, 2, 4
    wx = torch.randn(T, B, 4 * H).to(dtype)
    weight = (torch.randn(4 * H, H) / 3).to(dtype)
    cotangent = torch.randn(T, B, H).to(dtype)

    def run(wx):
        wx = wx.clone().requires_grad_()
        output, state = recurrence(wx, weight, cell=cell, backend=backend)
        gradient, = torch.autograd.grad(output, wx, cotangent)
        return output, gradient, *state

    calm = run(wx)
    hostile = wx.clone()
    hostile[step, row] = VALUES[value]
    output, gradient, *state = run(hostile)
    others = torch.arange(B) != row
    assert torch.equal(output[:, others], calm[0][:, others]) and torch.equal(output[:step], calm[0][:step])
    assert torch.equal(gradient[:, others], calm[1][:, others])
    assert all(torch.equal(got[others], want[others]) for got, want in zip(state, calm[2:]))
    assert output[step, row].isnan().any() or value == "inf" and cell != "slstm"


@pytest.mark.parametrize("backend", BACKENDS[-1:])
@pytest.mark.parametrize("cell, options", [(cell, options) for cell in CELLS for options in (
    {}, {"layer_norm": True, "residual": True}, {"checkpoint_every": 3}, {"proj_size": 3})
    if cell != "gru" or "proj_size" not in options], ids=str)
@pytest.mark.parametrize("bidirectional", (False, True))
@pytest.mark.parametrize("lengths", ([7, 3, 0, 5], [7, 7, 7, 6]))
def test_padding_is_never_read(backend, cell, bidirectional, options, lengths):
    """NaN in padding reaches no result and no gradient, whether padding is left out or walked past."""
    layer = FusedxLSTM(4, 6, 2, batch_first=True, bidirectional=bidirectional, cell=cell, backend=backend, **options)
    x = torch.randn(4, 7, 4)
    padding = torch.arange(7) >= torch.tensor(lengths).unsqueeze(1)
    results = []
    for fill in (0.0, float("nan")):
        values = x.masked_fill(padding.unsqueeze(2), fill).requires_grad_()
        output, state = layer(values, lengths=lengths)
        results.append((output, *state, *torch.autograd.grad(output.sum() + sum(part.sum() for part in state),
                                                             [values, *layer.parameters()])))
    assert all(torch.equal(got, want) and got.isfinite().all() for want, got in zip(*results))
    assert not results[1][0][padding].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.parametrize("per_row", (False, True))
def test_a_reset_ends_it(backend, cell, reverse, per_row):
    """Steps beyond a reset are those of a sequence that begins there: values, and gradients of what lies beyond."""
    T, B, H, cut = 8, 2, 5, 4
    wx, weight = torch.randn(T, B, 4 * H), torch.randn(4 * H, H) / 3
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[cut] = True
    shape = (T, B, H) if per_row else (B, H)
    state = tuple(torch.rand(shape) + 0.5 for _ in CELLS[cell].states)
    before, beyond = (slice(cut, T), slice(cut)) if reverse else (slice(cut), slice(cut, T))
    results = []
    for value in (0.0, float("nan")):
        hostile = wx.clone()
        hostile[before] += value
        hostile.requires_grad_()
        output, final = recurrence(hostile, weight, cell=cell, reverse=reverse, reset=reset, reset_state=state,
                                   backend=backend)
        gradient, = torch.autograd.grad(output[beyond].sum(), hostile)
        results.append((output[beyond], *final, gradient[beyond]))
    assert all(torch.equal(got, want) and got.isfinite().all() for want, got in zip(*results))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_subnormal_numbers_keep_their_digits(backend, cell):
    """Nothing is flushed to zero: with a zero matrix and tiny numbers in one gate, h is these times what the others
    are at zero."""
    wx = torch.zeros(1, 1, 4, 33)
    wx[0, 0, 2] = torch.linspace(1, 33, 33) * 2.0**-140
    output, _ = recurrence(wx.flatten(2), torch.zeros(132, 33), cell=cell, backend=backend)
    assert torch.equal(output[0, 0], wx[0, 0, 2] * (0.25 if cell == "lstm" else 0.5))
