"""The reference: its explicit backward, through the registered ops, against autograd through its forward."""

import pytest
import torch
from problems import LAYOUTS, RESETS, Problem
from tolerances import assert_close

from xlstm_fused import ops
from xlstm_fused.backends import reference
from xlstm_fused.cells import CELLS
from xlstm_fused.rows import Rows


def through_autograd(tensors, problem):
    """``reference.forward``, differentiated by autograd."""
    get = tensors.get
    return reference.forward(get("wx"), get("weight_hh"), get("h0"), get("s0"), problem.reset, get("reset_h"),
                             get("reset_s"), problem.reset_per_row, problem.h_mask, problem.rows, problem.cell,
                             problem.reverse)


def through_ops(tensors, problem, backend="reference"):
    """The same through the registered ops, which run the backend's own backward."""
    get = tensors.get
    return ops.recurrence(get("wx"), get("weight_hh"), get("h0"), get("s0"), problem.rows, problem.cell,
                          reset=problem.reset, reset_h=get("reset_h"), reset_s=get("reset_s"),
                          reset_per_row=problem.reset_per_row, h_mask=problem.h_mask, reverse=problem.reverse,
                          backend=backend, save=True)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("K, N, reverse", ((1, 1, False), (1, 2, True), (2, 2, False)))
def test_backward_is_autograd_of_forward(cell, layout, reset, K, N, reverse):
    problem = Problem.random(cell, layout, K, N, 3, reverse, reset, masked=N == 2)
    expected_values, expected = problem.run(through_autograd)
    values, gradients = problem.run(through_ops)
    for name, value in expected_values.items():
        assert_close(values[name], value, name)
    for name, gradient in expected.items():
        assert_close(gradients[name], gradient, f"gradient of {name}")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("B", (0, 2))
def test_lengths_of_zero_leave_the_state_alone(cell, B):
    problem = Problem.random(cell, Rows.dense(3, B, False, torch.zeros(B, dtype=torch.int64)))
    values, gradients = problem.run(through_ops)
    _, d_h_n, d_s_n, *_ = problem.cotangents
    assert torch.equal(values["h_n"], problem.tensors["h0"]) and torch.equal(values["s_n"], problem.tensors["s0"])
    assert torch.equal(gradients["h0"], d_h_n) and torch.equal(gradients["s0"], d_s_n)
    assert not values["output"].any() and not gradients["wx"].any() and not gradients["weight_hh"].any()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", (False, True))
def test_one_sequence_is_a_plain_loop(cell, reverse):
    """A loop written out here, with a reset state, against the reference."""
    kind, H = CELLS[cell], 4
    G, S = len(kind.gates), len(kind.states)
    problem = Problem.random(cell, "one sequence", 1, 1, H, reverse, "none")
    wx, weight = problem.tensors["wx"], problem.tensors["weight_hh"].view(G, H, H)
    state = (problem.tensors["h0"].view(H), *problem.tensors["s0"].view(S - 1, H))
    order = range(len(wx)) if not reverse else reversed(range(len(wx)))
    outputs = {}
    for t in order:
        pre = wx[t].view(G, H) + weight @ state[0]
        state = kind.step(tuple(pre), state)
        outputs[t] = state[0]
    values, _ = problem.run(through_autograd)
    assert_close(values["output"].view(-1, H), torch.stack([outputs[t] for t in range(len(wx))]), "output")
    assert_close(values["h_n"].view(H), state[0], "h_n")
    assert values["s_n"].numel() == (S - 1) * H
    for name, got, expected in zip(kind.states[1:], values["s_n"].view(S - 1, H), state[1:]):
        assert_close(got, expected, name)
