"""Cells and layer, in float64, against two implementations written by others: sLSTM of the xlstm package, and LSTM and
sLSTM of FlashRNN, both in their plain PyTorch form, differentiated by autograd.

They are imported without a skip, since a run that cannot compare must fail; the Makefile installs them.
"""

import pytest
import torch
import torch.nn.functional as F
from flashrnn import flashrnn
from tolerances import assert_close
from torch.func import functional_call
from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

from xlstm_fused import FusedxLSTM, backends, recurrence
from xlstm_fused.cells import CELLS

pytestmark = pytest.mark.usefixtures("poisoned_memory")
BACKENDS = [name for name, row in backends().items() if row.ready]
# T, B, N, D and the scale of wx: at 20 the exponential gates span many orders of magnitude.
SIZES = ((1, 1, 1, 1, 1), (7, 3, 1, 33, 1), (6, 5, 3, 7, 1), (23, 2, 5, 3, 1), (12, 3, 2, 9, 20))


def xlstm_states(wx, weight_hh, bias, state, cell):
    """Every state after every step, (S, T, B, H), of xlstm's sLSTM, from our tensors, ``wx`` without its bias."""
    assert cell == "slstm"
    H, D = state.shape[-1], weight_hh.shape[-1]
    module = sLSTMCell(sLSTMCellConfig(hidden_size=H, num_heads=H // D, backend="vanilla", bias_init="standard",
                                       input_shape="SBGNH", output_shape="SBH"))
    # Gates are ordered i, f, z, o as ours. This module stores the bias as (G*N*D,), which is ours, and the recurrent
    # matrix as (N, G*D_out, D_in), where ours is (G*N*D_out, D_in): heads and gates change places.
    theirs = {"_bias_": bias, "_recurrent_kernel_": weight_hh.view(4, -1, D, D).transpose(0, 1).flatten(1, 2)}
    steps = []
    for row in wx:
        # One step a call, since only the last step's c, n and m are returned.
        output, state = functional_call(module, theirs, (row[None], state))
        assert torch.equal(output[0], state[0])
        steps.append(state)
    return torch.stack(steps, 1)


def flashrnn_states(wx, weight_hh, bias, state, cell):
    """The same of FlashRNN."""
    (T, B, _), S, D = wx.shape, len(state), weight_hh.shape[-1]
    # Wx is (B, T, G, N, D), R (G, N, D_out, D_in), b (G, N, D), states (S, B, 1, N, D), the results (S, B, T, N, D) and
    # (S, B, 1, N, D). Gates are i, f, z, o in both cells; z of its LSTM is our g.
    states, last = flashrnn(wx.view(T, B, 4, -1, D).transpose(0, 1), weight_hh.view(4, -1, D, D), bias.view(4, -1, D),
                            state.view(S, B, 1, -1, D), function=cell, backend="vanilla", dtype="float64")
    assert torch.equal(states[:, :, -1:], last)
    return states.flatten(3).transpose(1, 2)


def initial_states(start, *shape):
    states = torch.randn(*shape, dtype=torch.float64)
    if start == "zero":
        states.zero_()
    elif start == "n = 0":
        states[2] = 0
    elif start == "n > 0":
        states[2].exp_()
    elif start == "n >= 1":
        states[2].exp_().add_(1)
    return [value.requires_grad_() for value in states.unbind(0)]


def named(names, output, final, every=()):
    return {"output": output, **{f"final {name}": value for name, value in zip(names, final)},
            **{f"every {name}": value for name, value in zip(names, every)}}


def assert_same(got, expected, inputs):
    """Dicts of tensors: the values, and their gradients with respect to ``inputs`` for random cotangents."""
    cotangents = [torch.randn_like(value) for value in expected.values()]
    gradients = [dict(zip(inputs, torch.autograd.grad(list(values.values()), list(inputs.values()), cotangents)))
                 for values in (got, expected)]
    for name in expected:
        assert_close(got[name], expected[name], name)
    for name in inputs:
        assert_close(gradients[0][name], gradients[1][name], f"gradient of {name}")


# Only where the definitions agree. Both packages ask whether all of n is zero, we ask each element: so n is zero
# everywhere or nowhere. FlashRNN also floors n at 1, and does not cap the forget gate at 1. From n >= 1 neither
# matters, and from the zero state neither shows but in the gradients of that state's c and n, which are left out.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("T, B, N, D, scale", SIZES)
@pytest.mark.parametrize("oracle, cell, start", (
    (xlstm_states, "slstm", "zero"), (xlstm_states, "slstm", "n = 0"), (xlstm_states, "slstm", "n > 0"),
    (flashrnn_states, "slstm", "zero"), (flashrnn_states, "slstm", "n >= 1"),
    (flashrnn_states, "lstm", "zero"), (flashrnn_states, "lstm", "any")))
def test_recurrence(oracle, cell, start, T, B, N, D, scale, backend):
    names, H = CELLS[cell].states, N * D
    state = initial_states(start, len(names), B, H)
    wx = (scale * torch.randn(T, B, 4 * H, dtype=torch.float64)).requires_grad_()
    weight_hh = (torch.randn(4 * H, D, dtype=torch.float64) / D**0.5).requires_grad_()
    bias = torch.randn(4 * H, dtype=torch.float64, requires_grad=True)
    options = {"cell": cell, "num_heads": N, "backend": backend}

    states = oracle(wx, weight_hh, bias, torch.stack(state), cell)
    expected = named(names, states[0], states[:, -1], states)
    output, final, trace = recurrence(wx + bias, weight_hh, state, trace=True, **options)
    got = named(names, output, final, [trace.states[name] for name in names])
    inputs = {"wx": wx, "weight_hh": weight_hh, "bias": bias, **dict(zip(names, state))}
    if (oracle, cell, start) == (flashrnn_states, "slstm", "zero"):
        del inputs["c"], inputs["n"]
    assert_same(got, expected, inputs)

    with torch.no_grad():
        output, final = recurrence(wx + bias, weight_hh, None if start == "zero" else state, **options)
    for name, value in named(names, output, final).items():
        assert_close(value, expected[name], f"{name} without gradients")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("oracle, cell", (
    (xlstm_states, "slstm"), (flashrnn_states, "slstm"), (flashrnn_states, "lstm")))
def test_two_layers_in_both_directions(oracle, cell, backend):
    T, B, I, H, N = 11, 3, 5, 21, 3
    names = CELLS[cell].states
    layer = FusedxLSTM(I, H, 2, bidirectional=True, dtype=torch.float64, cell=cell, num_heads=N, backend=backend)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    hx = initial_states("any" if cell == "lstm" else "n >= 1", len(names), 4, B, H)

    output, finals = x, []
    for depth in ("l0", "l1"):
        sides = []
        for suffix in ("", "_reverse"):
            w_ih, w_hh, b_ih, b_hh = (getattr(layer, f"{name}_{depth}{suffix}")
                                      for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            turned = (lambda value: value.flip(0)) if suffix else (lambda value: value)
            states = oracle(F.linear(turned(output), w_ih), w_hh, b_ih + b_hh,
                            torch.stack([value[len(finals)] for value in hx]), cell)
            sides.append(turned(states[0]))
            finals.append(states[:, -1])
        output = torch.cat(sides, -1)
    expected = named(names, output, torch.stack(finals, 1))
    inputs = {"x": x, **dict(layer.named_parameters()), **dict(zip(names, hx))}
    assert_same(named(names, *layer(x, hx)), expected, inputs)
