"""checkpoint_every: the layer in blocks of time against the layer at once, bit for bit, and the memory it keeps."""

import pytest
import torch
from problems import LAYOUTS, RESETS, Problem
from tolerances import assert_close

from xlstm_fused import checkpoint, ops
from xlstm_fused.backends import backends
from xlstm_fused.cells import CELLS

BACKENDS = [name for name, row in backends().items() if row.ready and name in ("cpu", "reference")]
I = 3


def run(problem, backend, every, order=1):
    """Values and gradients of a layer whose input product gives the problem's ``wx``'s shape."""
    K, G, N, D = problem.tensors["wx"].shape[1:]
    generator = torch.Generator().manual_seed(5)
    wide = problem.tensors["wx"].dtype

    def parameter(*shape):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.5).to(wide).requires_grad_()

    x, weight_ih, bias = parameter(problem.rows.P, I), parameter(K * G * N * D, I), parameter(K * G * N * D)
    tensors = {name: value.clone().requires_grad_() for name, value in problem.tensors.items() if name != "wx"}
    get = tensors.get
    options = dict(reset=problem.reset, reset_h=get("reset_h"), reset_s=get("reset_s"),
                   reset_per_row=problem.reset_per_row, h_mask=problem.h_mask, backend=backend)
    arguments = tensors["weight_hh"], get("h0"), get("s0"), problem.rows, problem.cell
    if every:
        values = checkpoint.layer(x, weight_ih, bias, *arguments, every, **options)
    else:
        wx = torch.nn.functional.linear(x, weight_ih, bias).view(-1, K, G, N, D)
        values = ops.recurrence(wx, *arguments, **options)[:3]
    names = ["x", "weight_ih", "bias", *tensors]
    inputs = (x, weight_ih, bias, *tensors.values())
    gradients = torch.autograd.grad(values, inputs, problem.cotangents[:3], create_graph=order > 1)
    if order > 1:
        # Of second order: of the gradients' inner product with fixed directions.
        directions = [torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
                      for value in gradients]
        gradients = torch.autograd.grad(gradients, inputs, directions)
    return dict(zip(("output", "h_n", "s_n"), values)), dict(zip(names, gradients))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("every", (1, 3, 7, 100))
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "no sequence"])
@pytest.mark.parametrize("cell", CELLS)
def test_same_as_without(cell, layout, reset, every, backend):
    problem = Problem.random(cell, layout, 2, 2, 5, reset=reset, masked=reset == "zero", initial=reset != "none",
                             dtype=torch.float32)
    expected_values, expected = run(problem, backend, None)
    values, gradients = run(problem, backend, every)
    exact = backend == "cpu"
    for name, value in (*expected_values.items(), *expected.items()):
        got = values[name] if name in values else gradients[name]
        if exact and name not in ("reset_h", "reset_s"):
            assert torch.equal(got, value), name
        else:
            assert_close(got, value, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_second_order(cell, backend):
    problem = Problem.random(cell, "lengths", 2, 1, 4, reset="per sequence")
    expected, got = run(problem, backend, None, order=2)[1], run(problem, backend, 2, order=2)[1]
    for name, value in expected.items():
        assert_close(got[name], value, f"second-order gradient of {name}")
