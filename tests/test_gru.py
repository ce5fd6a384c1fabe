"""cell="gru" against nn.GRU and nn.GRUCell: parameters, values, final states and every gradient."""

import pytest
import torch
from tolerances import assert_close
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from xlstm_fused import FusedxLSTM, FusedxLSTMCell, backends

I, H, T, B = 3, 5, 7, 4
BACKENDS = [name for name in ("reference", "cpu") if backends()[name].ready]
OPTIONS = (dict(), dict(num_layers=2, bidirectional=True, batch_first=True), dict(num_layers=2, bias=False),
           dict(num_layers=3, bidirectional=True, dropout=0.4))
FORMS = {  # Of x (T, B, I), or (B, T, I) if batch_first.
    "3-D": lambda x, batch_first: x,
    "2-D": lambda x, batch_first: x[0] if batch_first else x[:, 0],
    "packed": lambda x, batch_first: pack_padded_sequence(x, [7, 4, 4, 1], batch_first),
    "packed, unsorted": lambda x, batch_first: pack_padded_sequence(x, [2, 7, 1, 5], batch_first, False)}


def pair(dtype, backend="auto", **options):
    """A layer and nn.GRU, each made from the same seed."""
    torch.manual_seed(1)
    ours, after = FusedxLSTM(I, H, cell="gru", backend=backend, dtype=dtype, **options), torch.get_rng_state()
    torch.manual_seed(1)
    theirs = nn.GRU(I, H, dtype=dtype, **options)
    assert torch.equal(after, torch.get_rng_state())
    return ours, theirs


def assert_same_parameters(ours, theirs):
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


def assert_same_results(ours, theirs, *inputs):
    """Of two modules, each result, and the gradients of inputs and parameters for the same cotangents."""
    inputs = [value for value in inputs if value is not None]
    results = []
    for module in (ours, theirs):
        torch.manual_seed(2)
        values = module(*inputs)
        values = values if isinstance(values, tuple) else (values,)
        values = [value.data if isinstance(value, PackedSequence) else value for value in values]
        torch.manual_seed(3)
        given = [value.data if isinstance(value, PackedSequence) else value for value in inputs]
        wanted = [value for value in given if value.requires_grad] + list(module.parameters())
        weights = [torch.randn(value.shape, dtype=value.dtype) for value in values]
        results.append([*values, *torch.autograd.grad(values, wanted, weights)])
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype
        assert_close(got, want)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parameters_are_those_of_nn_gru(options):
    ours, theirs = pair(torch.float64, **options)
    assert_same_parameters(ours, theirs)
    assert (ours.mode, ours._flat_weights_names) == (theirs.mode, theirs._flat_weights_names)
    theirs.reset_parameters()
    ours.load_state_dict(theirs.state_dict())
    assert_same_parameters(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", (False, True), ids=("no hx", "hx"))
def test_results_and_gradients(backend, options, dtype, form, given):
    ours, theirs = pair(dtype, backend, **options)
    shape = (B, T, I) if ours.batch_first else (T, B, I)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    L = ours.num_layers * (1 + ours.bidirectional)
    hx = torch.randn((L, H) if form == "2-D" else (L, B, H), dtype=dtype, requires_grad=True) if given else None
    assert_same_results(ours, theirs, FORMS[form](x, ours.batch_first), hx)


@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("batch", ((), (B,)), ids=("one", "batch"))
def test_cell_is_nn_grucell(bias, batch):
    torch.manual_seed(1)
    ours = FusedxLSTMCell(I, H, bias, cell="gru", dtype=torch.float64)
    torch.manual_seed(1)
    theirs = nn.GRUCell(I, H, bias, dtype=torch.float64)
    assert_same_parameters(ours, theirs)
    x, h = (torch.randn(*batch, size, dtype=torch.float64, requires_grad=True) for size in (I, H))
    assert_same_results(ours, theirs, x, h)
    assert_same_results(ours, theirs, x, None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("every", (None, 3))
def test_resets_are_sequences_of_their_own(backend, every):
    """A reset to a learned state in the middle against nn.GRU on the two parts, forward direction and backward one."""
    ours, theirs = pair(torch.float64, backend, bidirectional=True)
    ours.checkpoint_every = every
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    h0, start = (torch.randn(2, B, H, dtype=torch.float64, requires_grad=True) for _ in range(2))
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[4] = True
    output, h_n = ours(x, h0, reset=reset, reset_state=start)
    # Forwards the second part starts from the reset state, backwards the first one does.
    first, h_first = theirs(x[:4], torch.stack((h0[0], start[1])))
    second, h_second = theirs(x[4:], torch.stack((start[0], h0[1])))
    expected, h_expected = torch.cat((first, second)), torch.stack((h_second[0], h_first[1]))
    assert_close(output, expected)
    assert_close(h_n, h_expected)
    weights = torch.randn_like(output), torch.randn_like(h_n)
    got = torch.autograd.grad((output, h_n), (x, h0, start, *ours.parameters()), weights)
    want = torch.autograd.grad((expected, h_expected), (x, h0, start, *theirs.parameters()), weights)
    for each, expected in zip(got, want, strict=True):
        assert_close(each, expected)


def test_trace_has_the_gates_of_the_formula():
    """With the weights of nn.GRU, and h from the trace's own gates."""
    ours, _ = pair(torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    output, _, trace = ours(x, trace=True)
    gates, before = trace[0].gates, torch.cat((output.new_zeros(1, B, H), output[:-1]))
    r, z, n = (x @ ours.weight_ih_l0.t() + ours.bias_ih_l0).chunk(3, -1)
    recurrent = (before @ ours.weight_hh_l0.t() + ours.bias_hh_l0).chunk(3, -1)
    r, z = torch.sigmoid(r + recurrent[0]), torch.sigmoid(z + recurrent[1])
    for name, want in (("r", r), ("z", z), ("q", recurrent[2]), ("n", torch.tanh(n + r * recurrent[2]))):
        assert_close(gates[name], want, name)
    assert_close(output, (1 - gates["z"]) * gates["n"] + gates["z"] * before)
    assert list(trace[0].states) == ["h"] and torch.equal(trace[0].states["h"], output)


@pytest.mark.parametrize("options, words", (
    (dict(proj_size=2), "proj_size argument is only supported for LSTM"),
    (dict(forget_bias=1.0), "forget_bias: expected None for cell='gru', which has no forget gate, got 1.0")))
def test_options_that_it_has_not(options, words):
    with pytest.raises(ValueError, match=words):
        FusedxLSTM(I, H, cell="gru", **options)


@pytest.mark.parametrize("hx, error, words", (
    ((torch.zeros(1, B, H),) * 2, ValueError, r"hx: expected a tensor \(h\) for cell='gru', got 2 elements"),
    (torch.zeros(1, B, H + 1), ValueError, r"hx\['h'\]: expected shape \(L\*K, B, H\) = \(1, 4, 5\), got \(1, 4, 6\)"),
    (0.0, TypeError, r"hx: expected a tensor \(h\) for cell='gru', got float")))
def test_wrong_states(hx, error, words):
    with pytest.raises(error, match=words):
        FusedxLSTM(I, H, cell="gru")(torch.zeros(T, B, I), hx)
