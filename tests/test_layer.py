"""A layer as one node of autograd against its input product and its recurrence as nodes of their own."""

import pytest
import torch
from tolerances import assert_close
from torch.autograd import gradgradcheck

from xlstm_fused import FusedxLSTM, layer
from xlstm_fused.cells import CELLS

# More and fewer rows than those from which weight gradients are formed as transposes.
SIZES = ((7, 3), (1, 2), (90, 13))


def run(module, x, state, options):
    """Outputs, and gradients of everything, for cotangents that depend on nothing but shapes."""
    torch.manual_seed(5)
    output, final = module(x, state, **options)
    results = [output, *final]
    leaves = [x, *module.parameters(), *(state or ())]
    gradients = torch.autograd.grad(results, leaves, [torch.randn_like(each) for each in results])
    return [each.detach() for each in results], gradients


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", (False, True))
@pytest.mark.parametrize("kind", ("plain", "batch first", "state", "lengths", "reset", "heads", "no bias"))
def test_same_values_and_gradients_as_two_nodes(cell, bidirectional, kind, monkeypatch):
    torch.manual_seed(3)
    for T, B in SIZES:
        module = FusedxLSTM(5, 12, 2, bias=kind != "no bias", batch_first=kind == "batch first", cell=cell,
                            bidirectional=bidirectional, num_heads=3 if kind == "heads" else 1, backend="cpu")
        x = torch.randn(*((B, T) if kind == "batch first" else (T, B)), 5, requires_grad=True)
        state = None
        if kind == "state":
            shape = (2 * (2 if bidirectional else 1), B, 12)
            state = tuple(torch.randn(shape).abs().requires_grad_() for _ in CELLS[cell].states)
        options = {}
        if kind == "lengths":
            options["lengths"] = torch.arange(B) % T + 1
        if kind == "reset":
            options["reset"] = torch.rand(T, B) < 0.3
        calls = []
        with monkeypatch.context() as patch:
            patch.setattr("xlstm_fused.module.run_layer", lambda *a, **k: calls.append(1) or layer.layer(*a, **k))
            values, gradients = run(module, x, state, options)
        assert len(calls) == 2
        with monkeypatch.context() as patch:
            patch.setattr("xlstm_fused.module.can_run", lambda *arguments: False)
            expected_values, expected = run(module, x, state, options)
        for value, other in zip((*values, *gradients), (*expected_values, *expected)):
            assert_close(value, other, f"T={T} B={B}")


@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives(cell):
    torch.manual_seed(4)
    module = FusedxLSTM(2, 3, cell=cell, dtype=torch.float64, backend="cpu")
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters)), (x,))[0]

    names, parameters = zip(*module.named_parameters())
    assert gradgradcheck(function, (x, *parameters))


def test_a_backward_twice_gives_the_same_twice():
    module = FusedxLSTM(4, 6, backend="cpu")
    x = torch.randn(5, 2, 4, requires_grad=True)
    loss = module(x)[0].square().sum()
    first = torch.autograd.grad(loss, (x, *module.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, (x, *module.parameters()))
    for a, b in zip(first, second):
        assert torch.equal(a, b)


def test_frozen_parts_get_no_gradient_and_change_no_other():
    module = FusedxLSTM(4, 6, backend="cpu")
    x = torch.randn(5, 2, 4)
    module(x)[0].sum().backward()
    expected = {name: value.grad.clone() for name, value in module.named_parameters()}
    module.zero_grad()
    module.weight_hh_l0.requires_grad_(False)
    module(x)[0].sum().backward()
    assert module.weight_hh_l0.grad is None
    for name, value in module.named_parameters():
        if value.requires_grad:
            assert torch.equal(value.grad, expected[name]), name
