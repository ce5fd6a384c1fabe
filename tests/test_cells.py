"""The cells' definitions: their explicit backward against autograd, and their behaviour at the edges."""

import pytest
import torch
from tolerances import assert_close

from xlstm_fused.cells import CELLS


def random_step(cell, count=400):
    kind = CELLS[cell]
    pre = tuple(3 * torch.randn(count, dtype=torch.float64) for _ in kind.gates)
    state = tuple(torch.randn(count, dtype=torch.float64) for _ in kind.states)
    if cell == "slstm":
        h, c, n, m = state
        # A quarter of the elements at the zero state, where m' = i.
        start = torch.rand(count) < 0.25
        state = h, *(torch.where(start, 0, value) for value in (c, n.exp(), m))
    return pre, state


@pytest.mark.parametrize("cell", CELLS)
def test_step_backward_is_the_vjp_of_step(cell):
    kind = CELLS[cell]
    pre, state = random_step(cell)
    inputs = [value.requires_grad_() for value in (*pre, *state)]
    after = kind.step(pre, state)
    cotangents = tuple(torch.randn_like(value) for value in after)
    expected = torch.autograd.grad(after, inputs, cotangents, allow_unused=True, materialize_grads=True)
    d_pre, d_state = kind.step_backward(pre, state, after, cotangents)
    for name, got, want in zip((*kind.gates, *kind.states), (*d_pre, *d_state), expected):
        assert_close(got, want, name)


@pytest.mark.parametrize("cell", CELLS)
def test_step_backward_is_differentiable(cell):
    kind = CELLS[cell]
    pre, state = random_step(cell, 12)
    inputs = [value.requires_grad_() for value in (*pre, *state)]

    def function(*values):
        pre, state = values[:len(kind.gates)], values[len(kind.gates):]
        after = kind.step(pre, state)
        d_pre, d_state = kind.step_backward(pre, state, after, after)
        return *d_pre, *d_state

    assert torch.autograd.gradcheck(function, inputs)


def test_slstm_decides_the_zero_state_per_element():
    kind = CELLS["slstm"]
    zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    i = torch.tensor([-3.0, -3.0], dtype=torch.float64)
    n = torch.tensor([0.0, 2.0], dtype=torch.float64)
    _, _, n1, m1 = kind.step((i, zero, one, one), (zero, zero, n, zero))
    log_half = torch.tensor(0.5, dtype=torch.float64).log()
    assert_close(m1, torch.stack([i[0], log_half]))
    assert_close(n1, torch.stack([one[0], 2 + (i[1] - log_half).exp()]))


def test_slstm_matches_the_unstabilised_formula():
    """c, n and h of arXiv 2405.04517 equations (8) to (10) without the stabiliser, over several steps."""
    kind = CELLS["slstm"]
    state = tuple(torch.zeros(50, dtype=torch.float64) for _ in range(4))
    c = n = torch.zeros(50, dtype=torch.float64)
    for _ in range(6):
        pre = i, f, z, o = tuple(torch.randn(50, dtype=torch.float64) for _ in range(4))
        state = kind.step(pre, state)
        c = torch.sigmoid(f) * c + i.exp() * z.tanh()
        n = torch.sigmoid(f) * n + i.exp()
        h1, c1, n1, m1 = state
        assert_close(h1, o.sigmoid() * c / n, "h")
        assert_close(c1 * m1.exp(), c, "c")
        assert_close(n1 * m1.exp(), n, "n")


def test_slstm_gradient_at_a_tie_of_the_stabiliser_is_that_of_h():
    """h does not depend on m', so at i == log f + m its gradient equals the one a hair beside the tie."""
    kind = CELLS["slstm"]

    def gradient(shift):
        f = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
        m = torch.tensor([0.2], dtype=torch.float64)
        i = (torch.nn.functional.logsigmoid(f) + m).detach() + shift
        i.requires_grad_()
        z, c, n = (torch.tensor([value], dtype=torch.float64) for value in (0.5, 0.7, 1.3))
        after = kind.step((i, f, z, z), (z, c, n, m))
        autograd = torch.autograd.grad(after[0], (i, f))
        zero = torch.zeros_like(z)
        explicit = kind.step_backward((i, f, z, z), (z, c, n, m), after, (torch.ones_like(z), zero, zero, zero))[0][:2]
        return torch.cat(autograd), torch.cat(explicit)

    beside = gradient(1e-12)[0]
    for got in gradient(0.0):
        assert_close(got, beside)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_extreme_preactivations_are_finite(cell, dtype):
    kind = CELLS[cell]
    values = torch.tensor([-1e4, -120.0, -1.0, 0.0, 1.0, 120.0, 1e4], dtype=dtype)
    pre = tuple(each.flatten().requires_grad_() for each in torch.meshgrid(*[values] * len(kind.gates), indexing="ij"))
    state = tuple(torch.zeros_like(pre[0]).requires_grad_() for _ in kind.states)
    for _ in range(3):
        state = kind.step(pre, state)
        assert all(value.isfinite().all() for value in state)
    gradients = torch.autograd.grad(sum(value.sum() for value in state), pre)
    assert all(value.isfinite().all() for value in gradients)
