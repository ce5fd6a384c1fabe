"""``hx`` as a list with one tuple of states per layer."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from xlstm_fused import FusedxLSTM
from xlstm_fused.cells import CELLS

T, B, I, H, L = 5, 3, 2, 4, 2


@pytest.mark.parametrize("cell, proj_size", (*((cell, 0) for cell in CELLS), ("lstm", 3), ("slstm", 3)))
@pytest.mark.parametrize("form", ("batched", "unbatched", "packed"))
@pytest.mark.parametrize("bidirectional", (False, True))
def test_equals_the_stacked_tuple(cell, form, bidirectional, proj_size):
    module = FusedxLSTM(I, H, L, bidirectional=bidirectional, proj_size=proj_size, cell=cell)
    K, batch = 1 + bidirectional, () if form == "unbatched" else (B,)
    sizes = (proj_size or H, *[H] * (len(CELLS[cell].states) - 1))
    stacked = tuple(torch.rand(L * K, *batch, size, requires_grad=True) for size in sizes)
    by_layer = [tuple(part.unflatten(0, (L, K))[layer].squeeze(0) if K == 1 else part.unflatten(0, (L, K))[layer]
                      for part in stacked) for layer in range(L)]
    x = pack_sequence([torch.randn(length, I) for length in (2, 5, 4)], enforce_sorted=False) if form == "packed" else (
        torch.randn(T, *batch, I))
    results = []
    for hx in (stacked, by_layer):
        output, state = module(x, hx)
        output = output.data if form == "packed" else output
        results.append((output, *state, *torch.autograd.grad(output.sum() + state[-1].sum(), stacked)))
    for want, got in zip(*results):
        assert torch.equal(got, want)


def test_a_list_of_tensors_is_still_the_stacked_state():
    module, x = FusedxLSTM(I, H, L), torch.randn(T, B, I)
    hx = torch.randn(L, B, H), torch.randn(L, B, H)
    assert torch.equal(module(x, list(hx))[0], module(x, hx)[0])


def one(*shape, count=2):
    return tuple(torch.zeros(*shape) for _ in range(count))


@pytest.mark.parametrize("options, hx, error, message", (
    ({}, [one(B, H)], ValueError, "hx: expected one tuple of states for each of 2 layers, got 1"),
    ({}, [one(B, H), one(B, H, count=1)], ValueError, "hx[1]: expected a tuple of 2 tensors (h, c) for cell='lstm', "
     "got 1 elements"),
    ({"cell": "slstm"}, [one(B, H), one(B, H)], ValueError, "hx[0]: expected a tuple of 4 tensors (h, c, n, m) for "
     "cell='slstm', got 2 elements"),
    ({}, [one(B, H), torch.zeros(B, H)], TypeError, "hx[1]: expected a tuple of 2 tensors (h, c) for cell='lstm', got "
     "Tensor"),
    ({}, [one(B, H), (torch.zeros(B, H), torch.zeros(B, H + 1))], ValueError, "hx[1]['c']: expected shape (B, H) = "
     "(3, 4), got (3, 5)"),
    ({"bidirectional": True}, [one(B, H), one(B, H)], ValueError, "hx[0]['h']: expected shape (K, B, H) = (2, 3, 4), "
     "got (3, 4)"),
    ({}, [one(B, H), (torch.zeros(B, H).double(), torch.zeros(B, H))], TypeError, "hx[1]['h']: expected torch.float32, "
     "got torch.float64"),
    ({}, [one(B, H), (None, torch.zeros(B, H))], TypeError, "hx[1]['h']: expected a Tensor, got NoneType"),
))
def test_errors_name_the_layer(options, hx, error, message):
    with pytest.raises(error) as caught:
        FusedxLSTM(I, H, L, **options)(torch.randn(T, B, I), hx)
    assert str(caught.value) == message
