"""The registered ops: what torch.library asks of them, fresh outputs, and derivatives up to the third order."""

import math

import pytest
import torch
from problems import LAYOUTS, RESETS, Problem
from test_reference import through_autograd, through_ops
from tolerances import assert_close

from xlstm_fused import FusedxLSTM, FusedxLSTMCell, recurrence
from xlstm_fused.backends import backends
from xlstm_fused.cells import CELLS
from xlstm_fused.rows import Rows

BACKENDS = [name for name in ("reference", "cpu") if backends()[name].ready]
OPS = {name: getattr(torch.ops.xlstm_fused, name).default for name in (
    "inference", "forward", "backward", "inference_from_input", "forward_from_input")}

both_cells_and_backends = pytest.mark.parametrize("cell, backend", [(c, b) for c in CELLS for b in BACKENDS])


def arguments_of_ops(problem, backend):
    """The arguments of each registered op for this problem, by op."""
    get = problem.tensors.get
    rest = (get("weight_hh"), get("h0"), get("s0"), problem.reset, get("reset_h"), get("reset_s"),
            problem.reset_per_row, problem.h_mask)
    options = (*problem.rows.arguments(), problem.cell, problem.reverse, backend)
    forward = (get("wx"), *rest, *options)
    output, _, _, pre, states = OPS["forward"](*forward)
    features = math.prod(get("wx").shape[1:])
    input = torch.randn(len(get("wx")), 2), torch.randn(features, 2), torch.randn(features)
    from_input = (*(value.to(output.dtype) for value in input), *rest, *options)
    return {"inference": forward, "forward": forward, "inference_from_input": from_input,
            "forward_from_input": from_input,
            "backward": (*rest, pre, states, output, *problem.cotangents, *options)}


@both_cells_and_backends
@pytest.mark.parametrize("case", (
    {"layout": "time-major", "initial": False},
    {"layout": "batch-first lengths", "reset": "per sequence", "K": 2, "N": 2, "masked": True},
    {"layout": "packed", "reset": "per row", "reverse": True},
), ids=lambda case: case["layout"])
def test_opcheck(case, cell, backend):
    problem = Problem.random(cell, D=3, dtype=torch.float32, **case)
    if case["layout"] == "time-major":
        # What autograd hands over for a loss in the output alone.
        problem.cotangents[1:] = [None] * 4
    for name, arguments in arguments_of_ops(problem, backend).items():
        results = torch.library.opcheck(OPS[name], arguments)
        assert set(results.values()) == {"SUCCESS"}, (name, results)


def addresses(values):
    """Where the memory of each tensor with any elements begins."""
    return [value.untyped_storage().data_ptr() for value in values if isinstance(value, torch.Tensor) and value.numel()]


@both_cells_and_backends
@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_are_fresh_and_as_the_fakes_say(layout, reset, dtype, cell, backend):
    problem = Problem.random(cell, layout, 2, 2, 3, reset=reset, dtype=dtype)
    for name, arguments in arguments_of_ops(problem, backend).items():
        outputs = OPS[name](*arguments)
        theirs, ours = addresses(arguments), addresses(outputs)
        assert len(ours) == len(set(ours)) and not set(ours) & set(theirs), name
        fakes = OPS[name](*[value.to("meta") if isinstance(value, torch.Tensor) else value for value in arguments])
        for output, fake in zip(outputs, fakes, strict=True):
            assert (output.shape, output.stride(), output.dtype) == (fake.shape, fake.stride(), fake.dtype), name


def derivatives(function, problem, order):
    """``[first, .., order-th]`` derivatives of a scalar of all results, each a list with one entry per tensor that has
    elements.

    The k-th is the gradient of the product of the one before with fixed numbers that make no two entries alike.
    """
    tensors = {name: value.clone().requires_grad_() for name, value in problem.tensors.items()}
    values, weights, results = function(tensors, problem), problem.cotangents, []
    wanted = [value for value in tensors.values() if value.numel()]
    for _ in range(order):
        scalar = sum((value * weight).sum() for value, weight in zip(values, weights, strict=True))
        values = torch.autograd.grad(scalar, wanted, create_graph=True)
        weights = [torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value) for value in values]
        results.append(values)
    return results


@both_cells_and_backends
@pytest.mark.parametrize("case", (
    {"layout": Rows.dense(3, 2, False)},
    {"layout": Rows.dense(4, 3, True, torch.tensor([3, 0, 4])), "reset": "per sequence", "K": 2, "masked": True},
    {"layout": Rows.cumulative(torch.tensor([0, 1, 4]), 4), "reset": "per row", "N": 2, "reverse": True},
), ids=("dense", "lengths", "cu_seqlens"))
def test_third_derivatives_are_those_of_the_loop(case, cell, backend):
    problem = Problem.random(cell, D=2, **case)
    expected = derivatives(through_autograd, problem, 3)
    got = derivatives(lambda tensors, problem: through_ops(tensors, problem, backend), problem, 3)
    names = [name for name, value in problem.tensors.items() if value.numel()]
    for order, (want, have) in enumerate(zip(expected, got, strict=True), 1):
        for name, a, b in zip(names, have, want, strict=True):
            assert b.norm() > 0
            assert_close(a, b, f"derivative {order} in {name}")


def strided(value):
    """The same values at every other address."""
    return torch.stack((value, value), -1)[..., 0]


@both_cells_and_backends
def test_recurrence_takes_any_strides(cell, backend):
    S = len(CELLS[cell].states)
    wx, weight = torch.randn(6, 3, 16), torch.randn(16, 2)
    state, reset_state = (tuple(torch.rand(3, 4) for _ in range(S)) for _ in range(2))
    lengths, reset = torch.tensor([6, 0, 4]), torch.rand(6, 3) < 0.5
    results = []
    for form in (torch.clone, strided):
        tensors = [form(value).requires_grad_() for value in (wx, weight, *state, *reset_state)]
        output, final = recurrence(*tensors[:2], tensors[2:2 + S], lengths=form(lengths), reset=form(reset), cell=cell,
                                   reset_state=tensors[2 + S:], num_heads=2, backend=backend)
        results.append((output, *final, *torch.autograd.grad(output.sum(), tensors, materialize_grads=True)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@both_cells_and_backends
def test_modules_take_parameters_of_any_strides(cell, backend):
    layer = FusedxLSTM(3, 4, 2, bidirectional=True, proj_size=0 if cell == "gru" else 2, cell=cell, backend=backend)
    for module, x in ((layer, torch.randn(5, 2, 3)), (FusedxLSTMCell(3, 4, cell=cell), torch.randn(2, 3))):
        parameters = {name: strided(value.detach()) for name, value in module.named_parameters()}
        got, expected = torch.func.functional_call(module, parameters, (strided(x),)), module(x)
        assert_close(got[0], expected[0])
