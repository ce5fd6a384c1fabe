"""The input product inside the recurrence: the same results as in two steps, and where it is taken.

Triton's kernels run in its interpreter, started from test_triton.py, or on a GPU, and their PTX in test_triton_ptx.py;
those of CUDA in test_cuda.py and test_cuda_ptx.py. The rest is of the ops, which any backend can stand behind.
"""

import pytest
import torch
from inputs import from_input, input_of, two_steps, with_input
from problems import Problem
from test_compile import fresh_dynamo  # noqa: F401 (a fixture)
from test_ops import derivatives
from test_transforms import assert_all_close, forward_mode
from tolerances import assert_close
from torch.func import grad, jvp, vmap

from xlstm_fused import FusedxLSTM, module
from xlstm_fused.backends import takes_input
from xlstm_fused.cells import CELLS

pytest.importorskip("triton", reason="triton is not installed")
from test_triton import check, on_device

from xlstm_fused.backends.triton import launch


def through_op(tensors, problem, backend):
    """The same through the registered op."""
    get = tensors.get
    return torch.ops.xlstm_fused.forward_from_input(
        *input_of(tensors), get("weight_hh"), get("h0"), get("s0"), problem.reset, get("reset_h"), get("reset_s"),
        problem.reset_per_row, problem.h_mask, *problem.rows.arguments(), problem.cell, False, backend)


@pytest.fixture
def calls(monkeypatch):
    """How often the backend was asked to form the input product."""
    counted = []
    forward = launch.forward_from_input
    monkeypatch.setattr(launch, "forward_from_input", lambda *arguments: counted.append(1) or forward(*arguments))
    return counted


@pytest.mark.usefixtures("poisoned_memory")
class TestKernel:
    pytestmark = on_device

    @pytest.mark.parametrize("cell, layout, K, N, D, I, reset, masked, dtype", (
        ("lstm", "time-major", 1, 1, 13, 3, "none", False, torch.bfloat16),
        ("slstm", "batch-first lengths", 2, 1, 16, 16, "per sequence", True, torch.float16),
        ("gru", "packed", 2, 2, 7, 17, "per row", False, torch.bfloat16),
        ("slstm", "cu_seqlens", 1, 2, 33, 32, "zero", True, torch.bfloat16),
        ("lstm", "one step", 2, 1, 5, 1, "per row", False, torch.float16)))
    def test_values_and_gradients(self, cell, layout, K, N, D, I, reset, masked, dtype):
        problem = with_input(Problem.random(cell, layout, K, N, D, False, reset, masked, dtype=dtype), I)
        for index in (2, 4):
            problem.cotangents[index].zero_()
        assert takes_input("triton", D, I, dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        check(problem, from_input, two_steps)

    @pytest.mark.parametrize("bias", (False, True))
    def test_a_layer_with_and_without_a_graph(self, bias, calls):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        layer = FusedxLSTM(5, 8, 2, bias=bias, bidirectional=True, backend="triton", device=device,
                           dtype=torch.bfloat16)
        x = torch.randn(4, 3, 5, device=device, dtype=torch.bfloat16)
        recorded, state = layer(x, lengths=[4, 0, 2])
        with torch.no_grad():
            unseen, same = layer(x, lengths=[4, 0, 2])
        assert len(calls) == 4
        assert all(torch.equal(a, b) for a, b in zip((recorded, *state), (unseen, *same), strict=True))

    @pytest.mark.parametrize("I, dtype, options", (
        (33, torch.bfloat16, {}), (5, torch.float32, {}), (5, torch.bfloat16, {"proj_size": 3})))
    def test_where_it_is_not_taken(self, I, dtype, options, calls):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        layer = FusedxLSTM(I, 8, backend="triton", device=device, dtype=dtype, **options)
        layer(torch.randn(2, 3, I, device=device, dtype=dtype))
        assert not calls


@pytest.fixture
def taken(monkeypatch):
    """Every layer goes through the ops that take an input."""
    monkeypatch.setattr(module, "takes_input", lambda *arguments: True)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", (
    {"layout": "time-major", "masked": True}, {"layout": "lengths", "K": 2, "reset": "per row"}),
    ids=lambda case: case["layout"])
def test_the_op_is_two_steps(case, cell):
    problem = with_input(Problem.random(cell, D=3, **case), 2)
    for got, expected in zip(problem.run(lambda *problem: through_op(*problem, "reference")), problem.run(two_steps)):
        for name, value in expected.items():
            assert_close(got[name], value, name)


def test_third_derivatives():
    problem = with_input(Problem.random("slstm", D=2, K=2, reset="per sequence"), 2)
    expected = derivatives(two_steps, problem, 3)
    got = derivatives(lambda *problem: through_op(*problem, "reference"), problem, 3)
    for order, (want, have) in enumerate(zip(expected, got, strict=True), 1):
        for name, a, b in zip(problem.tensors, have, want, strict=True):
            assert_close(a, b, f"derivative {order} in {name}")


@pytest.mark.parametrize("batched", (("x",), ("x", "weight_ih", "bias", "weight_hh"), ("weight_hh",)))
def test_vmap_is_a_loop(batched):
    problem = with_input(Problem.random("slstm", D=3), 2)
    tensors = {name: torch.stack([value, value + 1, value * 2]) if name in batched else value
               for name, value in problem.tensors.items()}
    dims = {name: 0 if name in batched else None for name in tensors}

    def loss(tensors):
        return sum((value * weight).sum() for value, weight in zip(through_op(tensors, problem, "reference"),
                                                                   problem.cotangents))

    each = [grad(loss)({name: value[v] if name in batched else value for name, value in tensors.items()})
            for v in range(3)]
    assert_all_close(vmap(grad(loss), in_dims=(dims,))(tensors),
                     {name: torch.stack([gradients[name] for gradients in each]) for name in tensors})


@forward_mode
def test_forward_mode_is_that_of_two_steps():
    problem = with_input(Problem.random("lstm", D=3), 2)
    tangents = {name: torch.randn_like(value) for name, value in problem.tensors.items()}
    results = [jvp(lambda tensors, run=run: tuple(run(tensors, problem)), (problem.tensors,), (tangents,))
               for run in (lambda *problem: through_op(*problem, "reference"), two_steps)]
    assert_all_close(*results)


@pytest.mark.usefixtures("taken", "fresh_dynamo")
def test_compiled_once_for_every_length_and_batch():
    layer = FusedxLSTM(3, 4, bidirectional=True, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for index, (T, B) in enumerate(((7, 6), (5, 4), (3, 9))):
        x = torch.randn(T, B, 3, dtype=torch.float64)
        with torch._dynamo.config.patch(error_on_recompile=index > 0):
            results = [torch.autograd.grad(run(x)[0].square().sum(), list(layer.parameters()))
                       for run in (compiled, layer)]
        assert_all_close(*results)


def test_a_layer_is_the_same_whichever_way_it_takes(monkeypatch):
    layer = FusedxLSTM(3, 4, 2, cell="slstm", num_heads=2, bidirectional=True, backend="reference")
    x = torch.randn(5, 2, 3)
    results = []
    for takes in (True, False):
        monkeypatch.setattr(module, "takes_input", lambda *arguments, takes=takes: takes)
        output, state, trace = layer(x, lengths=[5, 3], trace=True)
        results.append((output, *state, *torch.autograd.grad(output.sum(), list(layer.parameters()))))
        assert trace[1].gates["i"].shape[0] == 5
    assert_all_close(*results)
