"""Resets inside a sequence against a loop over episodes, as a reinforcement learning library would run it."""

import pytest
import torch
from tolerances import assert_close
from torch import nn

from xlstm_fused import FusedxLSTM, resets_from_done

T, B, I, H = 9, 4, 3, 5


@pytest.mark.parametrize("batch_first", (False, True))
@pytest.mark.parametrize("dtype", (torch.bool, torch.uint8, torch.float32))
def test_rollout_equals_the_loop_over_steps(batch_first, dtype):
    """Two rollouts, states carried over, resets from done flags; values and gradients as of nn.LSTM step by step."""
    theirs = nn.LSTM(I, H, 2, dtype=torch.float64)
    ours = FusedxLSTM(I, H, 2, batch_first=batch_first, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x, done = torch.randn(2 * T, B, I, dtype=torch.float64), torch.rand(2 * T, B) < 0.3
    done[T - 1, 0] = True

    expected, state = [], tuple(torch.zeros(2, B, H, dtype=torch.float64) for _ in range(2))
    for t in range(2 * T):
        keep = 1 - done[t - 1].double() if t else torch.ones(B, dtype=torch.float64)
        output, state = theirs(x[t:t + 1], tuple(value * keep[:, None] for value in state))
        expected.append(output)
    expected = torch.cat(expected)

    outputs, state, last_done = [], None, None
    for start in (0, T):
        part, flags = x[start:start + T], done[start:start + T].to(dtype)
        part, flags = (part.transpose(0, 1), flags.t()) if batch_first else (part, flags)
        reset = resets_from_done(flags, last_done, batch_first=batch_first)
        output, state = ours(part, state, reset=reset.to(dtype))
        outputs.append(output.transpose(0, 1) if batch_first else output)
        last_done = flags[:, -1] if batch_first else flags[-1]
    got = torch.cat(outputs)
    assert_close(got, expected)
    weight = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad((got * weight).sum(), list(ours.parameters())),
                    torch.autograd.grad((expected * weight).sum(), list(theirs.parameters()))):
        assert_close(a, b)


def test_one_sequence():
    done = torch.tensor([0, 1, 0, 0, 1])
    assert resets_from_done(done).tolist() == [False, False, True, False, False]
    assert resets_from_done(done, torch.tensor(1)).tolist() == [True, False, True, False, False]


def test_learned_reset_state_has_a_gradient_and_a_reset_lets_none_pass():
    layer = FusedxLSTM(I, H, 2, dtype=torch.float64)
    learned = tuple(torch.randn(2, B, H, dtype=torch.float64, requires_grad=True) for _ in range(2))
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[4, 1] = True
    output, _ = layer(x, reset=reset, reset_state=learned)
    d_x, *d_learned = torch.autograd.grad(output[4:, 1].sum(), (x, *learned))
    assert (d_x[:4] == 0).all() and (d_x[4:, 1] != 0).all()
    for value in d_learned:
        assert (value[:, 1] != 0).all() and (value[:, [0, 2, 3]] == 0).all()


@pytest.mark.parametrize("arguments, message", (
    (([0, 1],), "done: expected a Tensor, got list"),
    ((torch.zeros(2, 2, 2),), "done: expected 1 or 2 dimensions, got 3"),
    ((torch.zeros(3, 2), torch.zeros(3)), r"last_done: expected shape \(B,\) = \(2,\), got \(3,\)"),
))
def test_mistakes(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        resets_from_done(*arguments)
