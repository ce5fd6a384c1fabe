"""The layer against nn.LSTM, in float64, and its derivatives of first and second order."""

import itertools

import pytest
import torch
from tolerances import assert_close
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xlstm_fused import FusedxLSTM, backends
from xlstm_fused.cells import CELLS

BACKENDS = [name for name, row in backends().items() if row.ready]
OPTIONS = list(itertools.product((1, 2), (True, False), (True, False), (True, False), (0, 3)))
SIZES = ((5, 3, 4, 7), (1, 1, 3, 5), (9, 2, 5, 13))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_layers, bias, batch_first, bidirectional, proj_size", OPTIONS)
@pytest.mark.parametrize("T, B, I, H", SIZES)
def test_equals_nn_lstm(T, B, I, H, num_layers, bias, batch_first, bidirectional, proj_size, backend):
    arguments = (I, H, num_layers, bias, batch_first, 0.0, bidirectional, proj_size)
    torch.manual_seed(1)
    theirs = nn.LSTM(*arguments, dtype=torch.float64)
    torch.manual_seed(1)
    ours = FusedxLSTM(*arguments, dtype=torch.float64, backend=backend)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))

    L = num_layers * (2 if bidirectional else 1)
    x = torch.randn(*((B, T) if batch_first else (T, B)), I, dtype=torch.float64, requires_grad=True)
    hx = tuple(torch.randn(L, B, size, dtype=torch.float64, requires_grad=True) for size in (proj_size or H, H))
    results = []
    for module, state in ((theirs, None), (ours, None), (theirs, hx), (ours, hx)):
        output, (h, c) = module(x, state)
        inputs = [x, *module.parameters(), *(state or ())]
        weights = [torch.linspace(-1, 1, value.numel(), dtype=torch.float64).view_as(value) for value in (output, h, c)]
        results.append((output, h, c, *torch.autograd.grad((output, h, c), inputs, weights)))
    for expected, got in (results[:2], results[2:]):
        for index, (want, value) in enumerate(zip(expected, got)):
            assert_close(value, want, f"result {index}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_first", (True, False))
# Much padding, which is left out, and little, which is not.
@pytest.mark.parametrize("enforce_sorted, lengths", ((True, [6, 4, 3, 1]), (False, [3, 6, 1, 4]),
                                                     (False, [6, 5, 6, 6])))
def test_packed_and_lengths_equal_nn_lstm(enforce_sorted, lengths, batch_first, backend):
    theirs = nn.LSTM(3, 5, 2, bidirectional=True, dtype=torch.float64, batch_first=batch_first)
    ours = FusedxLSTM(3, 5, 2, bidirectional=True, dtype=torch.float64, batch_first=batch_first, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    lengths = torch.tensor(lengths)
    x = torch.randn(*((4, 6) if batch_first else (6, 4)), 3, dtype=torch.float64)
    hx = tuple(torch.randn(4, 4, 5, dtype=torch.float64) for _ in range(2))
    packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=enforce_sorted)
    expected, state = theirs(packed, hx)
    got, got_state = ours(packed, hx)
    assert_close(got.data, expected.data, "packed output")
    ragged, ragged_state = ours(x, hx, lengths=lengths)
    assert_close(ragged, pad_packed_sequence(expected, batch_first=batch_first)[0], "output with lengths")
    for a, b, c in zip(state, got_state, ragged_state):
        assert_close(b, a, "packed state")
        assert_close(c, a, "state with lengths")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_heads, bidirectional, structure",
                         ((1, False, "lengths"), (2, True, "lengths"), (2, False, "reset state"), (1, True, "none")))
def test_gradcheck_and_gradgradcheck(cell, num_heads, bidirectional, structure, backend):
    module = FusedxLSTM(2, 4, 2, bidirectional=bidirectional, dtype=torch.float64, cell=cell, num_heads=num_heads,
                        backend=backend)
    S, L = len(CELLS[cell].states), 4 if bidirectional else 2
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    states = [(torch.rand(L, 2, 4, dtype=torch.float64) + 0.5).requires_grad_() for _ in range(2 * S)]
    names, parameters = zip(*module.named_parameters())

    def function(x, *values):
        hx, reset_state, weights = values[:S], values[S:2 * S], values[2 * S:]
        options = {}
        if structure != "none":
            options = {"lengths": [3, 1], "reset": torch.tensor([[1, 0], [0, 0], [1, 1]])}
        if structure == "reset state":
            options = {"lengths": [2, 3], "reset": torch.tensor([[0, 1], [1, 0], [1, 1]]), "reset_state": reset_state}
        output, state, trace = torch.func.functional_call(
            module, dict(zip(names, weights)), (x, hx), {"trace": True, **options})
        layers = [value for layer in trace for value in (*layer.gates.values(), *layer.states.values())]
        return output, *state, *layers

    inputs = (x, *states, *parameters)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True, check_undefined_grad=False)
