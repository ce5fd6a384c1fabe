"""The options that nn.LSTM does not have: residual, layer_norm, recurrent_dropout, forget_bias, checkpoint_every."""

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import pack_padded_sequence

from xlstm_fused import FusedxLSTM, backends, recurrence
from xlstm_fused.cells import CELLS

T, B, H = 7, 3, 4
RESET = torch.tensor([[0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]])


def single_layers(module):
    """The layers of a module, each as a module of one layer with the same parameters and no options."""
    K = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        width = module.input_size if layer == 0 else K * module.hidden_size
        single = FusedxLSTM(width, module.hidden_size, cell=module.cell, bidirectional=module.bidirectional,
                            dtype=torch.float64)
        names = {name: name.replace("_l0", f"_l{layer}") for name in single.state_dict()}
        single.load_state_dict({name: getattr(module, source) for name, source in names.items()})
        yield single


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", (False, True))
@pytest.mark.parametrize("input_size", (2, H, 2 * H))
@pytest.mark.parametrize("layer_norm", (False, True))
@pytest.mark.parametrize("lengths", (None, [7, 2, 5]))
def test_residual_and_layer_norm_are_what_their_docstring_says(cell, bidirectional, input_size, layer_norm, lengths):
    module = FusedxLSTM(input_size, H, 3, dropout=0.3, bidirectional=bidirectional, dtype=torch.float64, cell=cell,
                        residual=True, layer_norm=layer_norm)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("norm_"):
                parameter.normal_()
    x = torch.randn(T, B, input_size, dtype=torch.float64)
    if lengths:
        x = x.masked_fill(torch.arange(T)[:, None, None] >= torch.tensor(lengths)[:, None], 0)
    singles = list(single_layers(module))
    torch.manual_seed(3)
    output, state = module(x, lengths=lengths)
    torch.manual_seed(3)
    expected, states = x, []
    for layer, single in enumerate(singles):
        h, final = single(F.dropout(expected, 0.3) if layer else expected, lengths=lengths)
        states.append(final)
        if layer_norm:
            h = F.layer_norm(h, h.shape[2:], *(getattr(module, f"norm_{name}_l{layer}") for name in ("weight", "bias")))
            if lengths:
                h = h * (torch.arange(T)[:, None, None] < torch.tensor(lengths)[:, None])
        expected = expected + h if expected.shape == h.shape else h
    assert_close(output, expected, "output")
    if cell == "gru":
        state, states = (state,), [(each,) for each in states]
    for got, parts in zip(state, zip(*states)):
        assert_close(got, torch.cat(parts), "state")


def test_norm_parameters_start_as_the_identity_and_leave_the_others_random_numbers_alone():
    torch.manual_seed(1)
    plain = FusedxLSTM(3, H, 2)
    torch.manual_seed(1)
    module = FusedxLSTM(3, H, 2, layer_norm=True)
    for name, value in plain.state_dict().items():
        assert torch.equal(module.state_dict()[name], value)
    for layer in range(2):
        assert torch.equal(getattr(module, f"norm_weight_l{layer}"), torch.ones(H))
        assert torch.equal(getattr(module, f"norm_bias_l{layer}"), torch.zeros(H))
    assert {id(value) for value in module.parameters()} > {id(value) for group in module.all_weights for value in group}


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_dropout_is_one_mask_for_all_steps(cell):
    module = FusedxLSTM(3, H, dtype=torch.float64, cell=cell, recurrent_dropout=0.4)
    plain, = single_layers(module)
    x = torch.randn(T, B, 3, dtype=torch.float64)
    module.eval()
    assert torch.equal(module(x)[0], plain(x)[0])
    module.train()
    torch.manual_seed(4)
    output, _ = module(x)
    torch.manual_seed(4)
    mask = F.dropout(torch.ones(B, H, dtype=torch.float64), 0.4)
    assert 0 < (mask == 0).sum() < mask.numel()
    kind, G = CELLS[cell], len(CELLS[cell].gates)
    weight_ih, bias_ih = (kind.all_gates(each, kind.input_gates) for each in (module.weight_ih_l0, module.bias_ih_l0))
    weight_hh, bias_hh = (kind.all_gates(each, kind.recurrent_gates)
                          for each in (module.weight_hh_l0, module.bias_hh_l0))
    wx = F.linear(x, weight_ih, bias_ih + bias_hh)
    state = tuple(torch.zeros(B, H, dtype=torch.float64) for _ in kind.states)
    for t in range(T):
        pre = (wx[t] + (state[0] * mask) @ weight_hh.t()).unflatten(1, (G, H))
        state = kind.step(pre.unbind(1), state)
        assert_close(output[t], state[0], f"h after step {t}")


def test_recurrent_dropout_of_everything_is_no_recurrence():
    module = FusedxLSTM(3, H, recurrent_dropout=1.0)
    x = torch.randn(T, B, 3)
    wx = F.linear(x, module.weight_ih_l0, module.bias_ih_l0 + module.bias_hh_l0)
    assert_close(module(x)[0], recurrence(wx, torch.zeros_like(module.weight_hh_l0))[0])


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_with_recurrent_dropout_and_all_options(cell):
    module = FusedxLSTM(H, H, 2, dropout=0.5, dtype=torch.float64, cell=cell, residual=True, layer_norm=True,
                        recurrent_dropout=0.5, forget_bias=1.0 if "f" in CELLS[cell].gates else None)
    x = torch.randn(3, 2, H, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*module.named_parameters())

    def function(x, *values):
        torch.manual_seed(0)
        output, state = torch.func.functional_call(module, dict(zip(names, values)), (x,), {"lengths": [2, 3]})
        return output, *state

    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("cell, num_heads", (("lstm", 1), ("slstm", 2)))
def test_forget_bias_is_the_sum_of_the_two(cell, num_heads):
    module = FusedxLSTM(3, H, 2, bidirectional=True, cell=cell, num_heads=num_heads, forget_bias=1.5)
    forget = CELLS[cell].gates.index("f")
    for layer in module.all_weights:
        total = (layer[2] + layer[3]).view(-1, H)
        assert torch.equal(total[forget], torch.full((H,), 1.5))
        assert (total[[g for g in range(len(total)) if g != forget]] != 0).all()


@pytest.mark.skipif(not backends()["cpu"].ready, reason="the cpu backend is not built")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("form", ("dense", "lengths", "packed", "cu_seqlens"))
def test_checkpoint_every_changes_no_bit(cell, form):
    """In float64: in float32 the kernel forms the input product of the layer at once, torch that of the blocks."""
    modules = [FusedxLSTM(3, H, 2, bidirectional=True, cell=cell, num_heads=2, residual=True, checkpoint_every=every,
                          backend="cpu", dtype=torch.float64) for every in (None, 3)]
    modules[1].load_state_dict(modules[0].state_dict())
    x, options = torch.randn(T, B, 3, requires_grad=True, dtype=torch.float64), {"reset": RESET}
    if form == "lengths":
        options["lengths"] = [7, 1, 4]
    results = []
    for module in modules:
        given = x
        if form == "packed":
            given, options = pack_padded_sequence(x, [2, 7, 4], enforce_sorted=False), {}
        elif form == "cu_seqlens":
            given, options = x.flatten(0, 1), {"cu_seqlens": [0, 9, 9, 14, 21], "reset": RESET.flatten()}
        output, state = module(given, **options)
        output = output.data if form == "packed" else output
        loss = sum((value * torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)).sum()
                   for value in (output, *state))
        results.append((output, *state, *torch.autograd.grad(loss, (x, *module.parameters()))))
    for index, (got, want) in enumerate(zip(results[1], results[0])):
        assert torch.equal(got, want), f"result {index}"


@pytest.mark.parametrize("cell", CELLS)
def test_checkpoint_every_keeps_less(cell):
    def kept(every):
        """Bytes that autograd holds between forward and backward, parameters and input apart."""
        module = FusedxLSTM(8, 8, 2, cell=cell, checkpoint_every=every)
        x, storages = torch.randn(96, 4, 8), {}
        others = {value.untyped_storage().data_ptr() for value in (x, *module.parameters())}

        def pack(value):
            storage = value.untyped_storage()
            if storage.data_ptr() not in others:
                storages[storage.data_ptr()] = storage.nbytes()
            return value

        with saved_tensors_hooks(pack, lambda value: value):
            output, _ = module(x)
        assert output.grad_fn is not None
        return sum(storages.values())

    everything, eighth, half = kept(None), kept(12), kept(48)
    assert half < eighth < everything / 2.5


@pytest.mark.parametrize("options", ({}, {"bidirectional": True, "num_layers": 2}, {"num_heads": 2}, {"proj_size": 2}))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_dtype_rounds_the_matrix_and_passes_the_gradient(cell, dtype, options):
    if cell == "gru" and "proj_size" in options:
        options = {}
    rounding, rounded = (FusedxLSTM(3, H, cell=cell, dtype=dtype, recurrent_dtype=each, **options)
                         for each in (torch.bfloat16, None))
    rounded.load_state_dict({name: value.bfloat16().to(dtype) if name.startswith("weight_hh") else value
                             for name, value in rounding.state_dict().items()})
    x = torch.randn(T, B, 3, dtype=dtype)
    results = []
    for module in (rounding, rounded):
        output, _ = module(x, reset=RESET)
        results.append((output, *torch.autograd.grad(output.square().sum(), module.parameters())))
    assert all(torch.equal(got, want) for got, want in zip(*results, strict=True))


def test_recurrent_dtype_of_weights_that_are_not_finite():
    module = FusedxLSTM(2, H, recurrent_dtype=torch.bfloat16, backend="reference")
    plain = FusedxLSTM(2, H, backend="reference")
    with torch.no_grad():
        module.weight_hh_l0[0], module.weight_hh_l0[5, 0] = float("inf"), float("nan")
        plain.load_state_dict(module.state_dict())
        plain.weight_hh_l0.copy_(plain.weight_hh_l0.bfloat16())
    x, state = torch.randn(T, B, 2), (torch.ones(1, B, H), torch.zeros(1, B, H))
    assert torch.equal(module(x, state)[0].isnan(), plain(x, state)[0].isnan())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # of forward mode
def test_recurrent_dtype_beside_torch_func():
    module = FusedxLSTM(3, H, recurrent_dtype=torch.bfloat16, dtype=torch.float64)
    x, parameters = torch.randn(T, B, 3, dtype=torch.float64), dict(module.named_parameters())

    def loss(values):
        return torch.func.functional_call(module, values, x)[0].square().sum()

    expected = torch.autograd.grad(loss(parameters), parameters.values())
    for got, want in zip(torch.func.grad(loss)(parameters).values(), expected):
        assert_close(got, want, "torch.func.grad")
    ones = {name: torch.ones_like(each) for name, each in parameters.items()}
    _, tangent = torch.func.jvp(loss, (parameters,), (ones,))
    assert_close(tangent, sum(each.sum() for each in expected), "torch.func.jvp")
