"""The same bits every time, and for each sequence whoever else is in its batch."""

import pytest
import torch

from xlstm_fused import FusedxLSTM, recurrence
from xlstm_fused.backends import backends
from xlstm_fused.cells import CELLS

BACKENDS = [name for name in ("reference", "cpu") if backends()[name].ready]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def train(module, x, lengths, seed):
    torch.manual_seed(seed)
    output, state = module(x, lengths=lengths)
    return [output, *state, *torch.autograd.grad(output.float().square().sum(), list(module.parameters()))]


@pytest.fixture
def thread_count():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend, threads", [("reference", 1), *[("cpu", threads) for threads in (1, 2)
                                                                   if "cpu" in BACKENDS]])
@pytest.mark.parametrize("cell", CELLS)
def test_a_hundred_runs_are_one(thread_count, backend, threads, cell):
    """Threads that share a head, a busy machine's timing, dropout of the same seed: no bit changes."""
    thread_count(threads)
    T, H = (20, 64) if backend == "cpu" else (4, 8)
    module = FusedxLSTM(5, H, bidirectional=True, recurrent_dropout=0.2, cell=cell, backend=backend)
    x, lengths = torch.randn(T, 6, 5), [T, 3, 1, T, 2, 0]
    expected = train(module, x, lengths, 1)
    for _ in range(100 if backend == "cpu" else 10):
        assert all(map(torch.equal, train(module, x, lengths, 1), expected))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H, N", ((37, 1), (36, 3)))
@pytest.mark.skipif("cpu" not in BACKENDS, reason="the cpu backend is not built")
def test_a_sequence_does_not_see_its_batch(cell, dtype, H, N):
    """Of the cpu backend's recurrence: values and gradients of each sequence, alone or anywhere in a batch."""
    T, B, D = 12, 9, H // N
    wx, weight = torch.randn(T, B, 4 * H).to(dtype), (torch.randn(4 * H, D) / D**0.5).to(dtype)
    cotangent, order = torch.randn(T, B, H).to(dtype), torch.randperm(B)

    def run(rows):
        values = wx[:, rows].contiguous().requires_grad_()
        output, state = recurrence(values, weight, cell=cell, num_heads=N, backend="cpu")
        return [output, torch.autograd.grad(output, values, cotangent[:, rows])[0], *(part[None] for part in state)]

    together = run(torch.arange(B))
    for rows in (order, order[:4], *order[:3].split(1)):
        assert all(torch.equal(got, want[:, rows]) for got, want in zip(run(rows), together))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_a_sequence_does_not_depend_on_the_values_of_its_batch(backend, cell, dtype):
    """Of a whole layer, with any backend: the other sequences' numbers change, this one's results do not."""
    module, row = FusedxLSTM(4, 6, 2, bidirectional=True, cell=cell, dtype=dtype, backend=backend), 2
    x = torch.randn(5, 4, 4, dtype=dtype)
    results = []
    for _ in range(3):
        others = torch.randn_like(x)
        others[:, row] = x[:, row]
        others.requires_grad_()
        output, state = module(others)
        results.append([output[:, row], torch.autograd.grad(output[:, row].sum(), others)[0][:, row],
                        *(part[:, row] for part in (state if isinstance(state, tuple) else (state,)))])
    assert all(all(map(torch.equal, each, results[0])) for each in results)
