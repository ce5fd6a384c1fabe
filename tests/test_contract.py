"""nn.LSTM's contract: the same tests on nn.LSTM itself, which proves the tests, and on FusedxLSTM with each backend.

What is expected is what nn.LSTM of the installed torch does; beside that, what can be said without it. Of the errors,
only those are here that test_bad_input.py does not have: it compares them with nn.LSTM's in the same way.
"""

import copy
import inspect
import io
import pickle
from functools import partial

import pytest
import torch
from tolerances import assert_as_good_as, assert_close
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, prune, vector_to_parameters
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from xlstm_fused import FusedxLSTM, FusedxLSTMCell, backends

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

T, B, I, H = 5, 3, 4, 6
FP64, FP32, BF16 = torch.float64, torch.float32, torch.bfloat16
LAYERS = {"nn.LSTM": nn.LSTM} | {
    name: partial(FusedxLSTM, backend=name) for name in ("reference", "cpu") if backends()[name].ready}
DEEP = dict(num_layers=2, bidirectional=True)
OPTIONS = ({}, DEEP | dict(batch_first=True), DEEP | dict(bias=False, proj_size=2))
LENGTHS, UNSORTED = [5, 3, 2], [2, 5, 3]
FORMS = {  # Of a padded batch x, (B, T, I) if batch_first.
    "3-D": lambda x, batch_first: x,
    "2-D": lambda x, batch_first: x[0] if batch_first else x[:, 0],
    "empty": lambda x, batch_first: x,
    "strided": lambda x, batch_first: x.mT.contiguous().mT,
    "expanded": lambda x, batch_first: x[:1, :, :1].expand_as(x),
    "packed": lambda x, batch_first: pack_padded_sequence(x, LENGTHS, batch_first),
    "packed, enforce_sorted=False": lambda x, batch_first: pack_padded_sequence(x, LENGTHS, batch_first, False),
    "packed, unsorted": lambda x, batch_first: pack_padded_sequence(x, UNSORTED, batch_first, False)}
STATES = {
    "no hx": lambda h, c: None,
    "tuple": lambda h, c: (h, c),
    "list": lambda h, c: [h, c],
    "strided hx": lambda h, c: (h.mT.contiguous().mT, c[..., :1].expand_as(c))}

of_each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
of_each_class = pytest.mark.parametrize("cls", (nn.LSTM, FusedxLSTM))
of_each_cell = pytest.mark.parametrize("cls", (nn.LSTMCell, FusedxLSTMCell))
of_each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def pair(make, theirs=nn.LSTM, **options):
    """A module to test and torch's, each made from the same seed; both draw the same random numbers."""
    torch.manual_seed(1)
    module, drawn = make(I, H, **options), torch.get_rng_state()
    torch.manual_seed(1)
    expected = theirs(I, H, **options)
    assert torch.equal(drawn, torch.get_rng_state())
    return module, expected


def draw(module, form="3-D"):
    """Input and states for a layer, ``(x, h, c)``."""
    batch = 0 if form == "empty" else B
    x = (batch, T, I) if module.batch_first else (T, batch, I)
    L = module.num_layers * (1 + module.bidirectional)
    h, c = ((L, size) if form == "2-D" else (L, batch, size) for size in (module.proj_size or H, H))
    return [torch.randn(shape, dtype=module.weight_ih_l0.dtype, requires_grad=True) for shape in (x, h, c)]


def flat(output, state):
    return [output.data if isinstance(output, PackedSequence) else output, *state]


def call(module, values, form="3-D", hx="tuple"):
    return module(FORMS[form](values[0], module.batch_first), STATES[hx](*values[1:]))


def with_gradients(module, values, tensors):
    """``(output, h, c)`` or ``(h, c)`` by name, and the gradient of each value and parameter that wants one."""
    tensors = dict(zip(("c", "h", "output"), reversed(tensors)))
    weights = [torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value) for value in tensors.values()]
    wanted = dict(zip(("x", "h", "c"), values)) | dict(module.named_parameters())
    wanted = {f"gradient of {name}": value for name, value in wanted.items() if value.requires_grad}
    gradients = torch.autograd.grad(list(tensors.values()), list(wanted.values()), weights, allow_unused=True)
    return tensors | dict(zip(wanted, gradients))


def run(module, values, form="3-D", hx="tuple"):
    torch.manual_seed(2)
    return with_gradients(module, values, flat(*call(module, values, form, hx))) | {"random number": torch.rand(1)}


def assert_same(got, expected):
    assert list(got) == list(expected)
    for name, want in expected.items():
        assert (got[name] is None) == (want is None), name
        if want is not None:
            assert got[name].dtype == want.dtype, name
            assert_close(got[name], want, name)


def assert_equal(got, expected):
    assert list(got) == list(expected) and all(torch.equal(got[name], want) for name, want in expected.items())


@pytest.mark.parametrize("ours, theirs, skipped", ((FusedxLSTM, nn.RNNBase, 1), (FusedxLSTMCell, nn.LSTMCell, 0)))
def test_signature(ours, theirs, skipped):
    """That of nn.LSTM is ``*args, **kwargs``: they go to nn.RNNBase, after ``mode``."""
    expected = list(inspect.signature(theirs).parameters.values())[skipped:]
    got = list(inspect.signature(ours).parameters.values())
    for mine, want in zip(got, expected):
        assert (mine.name, mine.kind, mine.default) == (want.name, want.kind, want.default)
    assert all(more.kind is more.KEYWORD_ONLY and more.default is not more.empty for more in got[len(expected):])


@of_each_class
def test_positional_arguments_and_attributes(cls):
    expected = dict(input_size=3, hidden_size=4, num_layers=2, bias=False, batch_first=True, dropout=1.0,
                    bidirectional=True, proj_size=2)
    for module in (cls(3, 4, 2, False, True, 1, True, 2, "cpu", FP64), cls(**expected, device="cpu", dtype=FP64)):
        assert {name: getattr(module, name) for name in expected} == expected
        assert isinstance(module, nn.RNNBase) and module.mode == "LSTM" and type(module.dropout) is float
        assert module.training and all(value.dtype == FP64 for value in module.parameters())


@of_each_class
@of_each_option
@pytest.mark.parametrize("dtype", (FP64, FP32, BF16), ids=str)
def test_weights_for_a_seed(cls, options, dtype):
    module, theirs = pair(cls, dtype=dtype, **options)
    for seed in (2, 3):
        assert_equal(module.state_dict(), theirs.state_dict())
        assert all(0 < value.abs().max() <= H ** -0.5 and value.dtype == dtype for value in module.parameters())
        for each in (module, theirs):
            torch.manual_seed(seed)
            each.reset_parameters()
    names, values = zip(*module.named_parameters())
    assert list(names) == module._flat_weights_names == theirs._flat_weights_names
    assert list(map(id, values)) == list(map(id, module._flat_weights)) == list(map(id, sum(module.all_weights, [])))
    assert list(map(len, module.all_weights)) == list(map(len, theirs.all_weights))
    assert module.flatten_parameters() is None
    module.weight_hh_l0 = nn.Parameter(torch.zeros_like(module.weight_hh_l0))
    assert module._flat_weights[1] is module.all_weights[0][1] is module.weight_hh_l0


@of_each_class
@pytest.mark.parametrize("options", (*OPTIONS, dict(num_layers=2, dropout=0.25), dict(bidirectional=1)), ids=str)
def test_repr(cls, options):
    module, theirs = pair(cls, **options)
    assert repr(module) == repr(theirs).replace("LSTM", cls.__name__)
    assert repr(cls(3, 4)) == f"{cls.__name__}(3, 4)"


@of_each_class
def test_warning_for_dropout_with_one_layer(cls):
    with pytest.warns(UserWarning) as caught:
        cls(I, H, dropout=0.5)
        nn.LSTM(I, H, dropout=0.5)
    got, expected = (str(each.message) for each in caught)
    assert got == expected and "got dropout=0.5 and num_layers=1" in got


@of_each_layer
@of_each_option
@pytest.mark.parametrize("dtype, hx", ((FP32, "tuple"), (FP64, "no hx"), (FP64, "list"), (FP64, "strided hx")))
@pytest.mark.parametrize("form", FORMS)
def test_results_and_gradients(make, options, dtype, hx, form):
    module, theirs = pair(make, dtype=dtype, **options)
    values = draw(module, form)
    assert_same(run(module, values, form, hx), run(theirs, values, form, hx))
    given = FORMS[form](values[0], module.batch_first)
    output, state = module(given, STATES[hx](*values[1:]))
    assert type(output) is type(given) and type(state) is tuple
    assert [value.shape for value in state] == [value.shape for value in values[1:]]
    features = (1 + module.bidirectional) * (module.proj_size or H)
    assert output.data.shape == (*given.data.shape[:-1], features)
    if isinstance(given, PackedSequence):
        assert all(got is want for got, want in zip(output[1:], given[1:], strict=True))


@of_each_layer
@pytest.mark.parametrize("lengths, enforce_sorted", ((LENGTHS, True), (LENGTHS, False), (UNSORTED, False)))
def test_a_packed_batch_is_its_sequences_one_by_one(make, lengths, enforce_sorted):
    """hx and the final states are in the order that the sequences had before packing."""
    module = make(I, H, **DEEP, dtype=FP64)
    x, h, c = draw(module)
    output, state = module(pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted), (h, c))
    padded, _ = pad_packed_sequence(output)
    for b, length in enumerate(lengths):
        got = padded[:length, b], *(value[:, b] for value in state)
        for value, want in zip(got, flat(*module(x[:length, b], (h[:, b], c[:, b])))):
            assert_close(value, want)


X, S, PACKED = torch.zeros(T, B, I), torch.zeros(1, B, H), pack_padded_sequence(torch.zeros(T, B, I), LENGTHS)
ERRORS = (
    *((lambda LSTM, p=p: LSTM(I, H, 2, dropout=p), ValueError, "dropout should be a number in range [0, 1]")
      for p in (-0.1, 2, True, "0", float("nan"))),
    (lambda LSTM: LSTM(I, H, 2, dropout=None), TypeError, "float() argument must be"),
    (lambda LSTM: LSTM(I, H, 1.5), TypeError, "'float' object cannot be interpreted as an integer"),
    (lambda LSTM: LSTM(I, H)(X[:0], (S, S)), RuntimeError, "Expected sequence length to be larger than 0 in RNN"),
    (lambda LSTM: LSTM(I, H)(PACKED, (S, S, S)), RuntimeError, "lstm expects two hidden states"),
    (lambda LSTM: LSTM(I, 7)(X, (S.new_zeros(1, B, 7), S)), RuntimeError, "Expected hidden[1] size (1, 3, 7), got"))


@of_each_class
@pytest.mark.parametrize("mistake, kind, message", ERRORS)
def test_errors(cls, mistake, kind, message):
    with pytest.raises(Exception) as error:
        mistake(cls)
    with pytest.raises(Exception) as expected:
        mistake(nn.LSTM)
    assert error.type is expected.type is kind
    assert str(error.value).replace(cls.__name__, "LSTM") == str(expected.value)
    assert str(expected.value).startswith(message)


@of_each_layer
@pytest.mark.parametrize("hx", ((S[:, 1:], S), (S[..., 1:], S), (S, S.double()), (S.expand(2, B, H),) * 2))
def test_wrong_states_of_a_packed_batch(make, hx):
    with pytest.raises((RuntimeError, TypeError)):
        make(I, H)(PACKED, hx)


@of_each_layer
@pytest.mark.parametrize("dtype, bidirectional", ((FP64, True), (FP32, False), (FP32, True)))
@pytest.mark.parametrize("batch_first", (False, True))
@pytest.mark.parametrize("form", ("3-D", "2-D", "packed", "packed, unsorted"))
def test_dropout_draws_the_random_numbers_of_nn_lstm(make, dtype, bidirectional, batch_first, form):
    options = dict(num_layers=3, dropout=0.4, batch_first=batch_first, bidirectional=bidirectional, dtype=dtype)
    module, theirs = pair(make, **options)
    values = draw(module, form)
    dropped = run(module, values, form)
    assert_same(dropped, run(theirs, values, form))
    kept = run(module.eval(), values, form)
    assert_same(kept, run(theirs.eval(), values, form))
    assert not torch.allclose(dropped["output"], kept["output"])


@of_each_layer
@pytest.mark.parametrize("batch_first", (False, True))
def test_dropout_can_be_changed_and_switched_off(make, batch_first):
    module, theirs = pair(make, num_layers=2, batch_first=batch_first, dtype=FP64)
    values = draw(module)
    kept = run(module, values)
    for p in (0.5, 1.0):
        module.dropout = theirs.dropout = p
        assert_same(run(module, values), run(theirs, values))
    # With p = 1, nothing of the input reaches the second layer.
    assert not torch.autograd.grad(call(module, values)[0].sum(), values[0])[0].any()
    for module.training, module.dropout in ((False, 1.0), (True, 0.0)):
        assert_equal(run(module, values), kept)


@of_each_layer
@pytest.mark.parametrize("batch_first", (False, True))
def test_gradients_with_dropout(make, batch_first):
    module = make(I, H, **DEEP, dropout=0.5, batch_first=batch_first, dtype=FP64)
    names, parameters = zip(*module.named_parameters())

    def function(x, h, c, *weights):
        torch.manual_seed(4)
        return tuple(flat(*torch.func.functional_call(module, dict(zip(names, weights)), (x, (h, c)))))

    assert torch.autograd.gradcheck(function, (*draw(module), *parameters), fast_mode=True)


# Of float32 on the CPU, nn.LSTM's dtypes depend on what runs it: oneDNN, for dense batches and no projection, returns
# bfloat16, or an error where the processor lacks AVX-512; else each is what the types promote to. Ours is autocast's.
AUTOCAST = (  # form, options, dtype of input and states, nn.LSTM's dtypes of output, h and c
    *((form, options, BF16, [BF16] * 3) for form in ("3-D", "2-D", "packed, unsorted") for options in OPTIONS),
    *((form, options, FP32, None) for form in ("3-D", "2-D") for options in OPTIONS[:2]),
    *(("packed", options, FP32, [FP32] * 3) for options in OPTIONS[:2]),
    *((form, OPTIONS[2], FP32, [BF16, BF16, FP32]) for form in ("3-D", "2-D", "packed")))


@pytest.mark.parametrize("make, form, options, given, theirs", [
    (make, *line) for make in LAYERS.values() for line in AUTOCAST if make is not nn.LSTM or line[-1]])
def test_autocast(make, form, options, given, theirs):
    module, plain = pair(make, **options)
    values = draw(module, form)

    def run_in(dtype, module):
        return run(module, [value.detach().to(dtype).requires_grad_() for value in values], form)

    with torch.autocast("cpu", dtype=BF16):
        got = run_in(given, module)
    assert [got[name].dtype for name in ("output", "h", "c")] == (theirs if make is nn.LSTM else [BF16] * 3)
    dtypes = [value.dtype for name, value in got.items() if name.startswith("gradient")]
    assert dtypes == [given] * 3 + [FP32] * len(module._flat_weights)
    low, true = run_in(BF16, copy.deepcopy(plain).to(BF16)), run_in(FP64, plain.to(FP64))
    # Together, since a few rounding errors alone are no measure of each other.
    assert_as_good_as(*(torch.cat([value.flatten().double() for value in each.values()]) for each in (got, low, true)))


CHANGES = {
    "parametrize": lambda module: parametrize.register_parametrization(module, "weight_hh_l1", nn.Tanh()),
    "weight_norm": lambda module: parametrizations.weight_norm(module, "weight_hh_l1")
    .parametrizations.weight_hh_l1.original0.data.mul_(2),
    "prune": lambda module: prune.l1_unstructured(module, "weight_hh_l1", 0.5),
    "load_state_dict(assign=True)": lambda module: module.load_state_dict(
        {name: 2 * value for name, value in module.state_dict().items()}, assign=True),
    "vector": lambda module: vector_to_parameters(2 * parameters_to_vector(module.parameters()), module.parameters()),
    "setattr": lambda module: setattr(module, "weight_hh_l1", nn.Parameter(2 * module.weight_hh_l1.detach())),
    "requires_grad_(False)": lambda module: module.weight_hh_l1.requires_grad_(False).mul_(2),
    "all of them": lambda module: [value.requires_grad_(False).mul_(2) for value in module.parameters()],
    "in place": lambda module: module.weight_hh_l1.data.mul_(2),
    "other strides": lambda module: setattr(module.weight_hh_l1, "data", 2 * module.weight_hh_l1.data.t().clone().t())}


@of_each_layer
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_parameters_are_read_at_every_call(make, change):
    module, theirs = pair(make, **DEEP, dtype=FP64)
    values, unchanged = draw(module), copy.deepcopy(module)
    before = run(module, values)
    for each in (module, theirs):
        change(each)
    after = run(module, values)
    assert_same(after, run(theirs, values))
    fresh = nn.LSTM(I, H, **DEEP, dtype=FP64)
    fresh.load_state_dict({name: getattr(module, name) for name in fresh.state_dict()})
    functional = torch.func.functional_call(unchanged, fresh.state_dict(), (values[0], values[1:]))
    for name, want, value in zip(("output", "h", "c"), flat(*call(fresh, values)), flat(*functional)):
        assert_close(after[name], want, name)
        assert_close(value, want, name)
        assert not torch.allclose(want, before[name])
    assert_equal(run(unchanged, values), before)


def loaded(module, source, **options):
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    module.load_state_dict(torch.load(file, weights_only=True), strict=True, **options)
    return module


COPIES = {
    "deepcopy": lambda make, module, theirs: copy.deepcopy(module),
    "pickle": lambda make, module, theirs: pickle.loads(pickle.dumps(module)),
    "share_memory": lambda make, module, theirs: copy.deepcopy(module).share_memory(),
    "to and back": lambda make, module, theirs: copy.deepcopy(module).to(FP64).to(FP32),
    "state_dict from nn.LSTM": lambda make, module, theirs: loaded(make(I, H, **DEEP), theirs),
    "state_dict to nn.LSTM": lambda make, module, theirs: loaded(nn.LSTM(I, H, **DEEP), module),
    "to_empty": lambda make, module, theirs: loaded(make(I, H, **DEEP, device="meta").to_empty(device="cpu"), theirs),
    "assign": lambda make, module, theirs: loaded(make(I, H, **DEEP, device="meta"), theirs, assign=True)}


@of_each_layer
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies(make, duplicate):
    module, theirs = pair(make, **DEEP)
    values = draw(module)
    weights, expected = copy.deepcopy(module.state_dict()), run(module, values)
    twin = duplicate(make, module, theirs)
    for parameter in (*module.parameters(), *theirs.parameters()):
        parameter.data.zero_()
    assert_equal(twin.state_dict(), weights)
    assert [id(getattr(twin, name)) for name in twin._flat_weights_names] == list(map(id, twin._flat_weights))
    assert_same(run(twin, values), expected)


@of_each_layer
def test_to_dtype(make):
    module, theirs = pair(make, **DEEP)
    values = draw(module.to(FP64))
    expected = run(theirs.to(FP64), values)
    assert_same(run(module, values), expected)
    with torch.autocast("cpu", dtype=BF16):  # It leaves float64 alone.
        assert_same(run(module, values), expected)
    assert {value.dtype for value in flat(*call(module.to(BF16), draw(module)))} == {BF16}


@of_each_cell
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("dtype", (FP64, FP32), ids=str)
@pytest.mark.parametrize("batch", ((B,), (0,), ()), ids=str)
def test_cell(cls, bias, dtype, batch):
    module, theirs = pair(cls, nn.LSTMCell, bias=bias, dtype=dtype)
    assert_equal(module.state_dict(), theirs.state_dict())
    assert repr(module) == repr(theirs).replace("LSTMCell", cls.__name__)
    assert (module.bias_ih is None) == (module.bias_hh is None) == (not bias)
    for each in (module, theirs):
        prune.l1_unstructured(each, "weight_hh", 0.5)
    x, h, c = (torch.randn(*batch, size, dtype=dtype, requires_grad=True) for size in (I, H, H))
    for hx in (None, (h, c), [h, c], (h, c[..., :1].expand_as(c))):
        assert_same(*(with_gradients(each, (x, h, c), each(x, hx)) for each in (module, theirs)))


@of_each_cell
def test_cell_in_autocast(cls):
    module, x = cls(I, H), torch.randn(B, I)
    with torch.autocast("cpu", dtype=BF16):
        # Of float32, nn.LSTMCell makes float32 on the CPU, to which types promote, but autocast's dtype on a GPU.
        assert [value.dtype for value in module(x)] == [FP32 if cls is nn.LSTMCell else BF16] * 2
        state = module(x.to(BF16))
        assert [value.dtype for value in (*state, *module(x.to(BF16), state))] == [BF16] * 4
