"""Products of whole matrices by the CPU backend's own kernel, where the processor has one."""

import importlib
import random

import pytest
import torch

from xlstm_fused import FusedxLSTM

cpu = importlib.import_module("xlstm_fused.backends.cpu")
HAS_PRODUCT = cpu._cpu is not None and "avx512amx" in cpu._cpu.isas()
pytestmark = pytest.mark.skipif(cpu._cpu is None, reason="the cpu backend is not built")
needs_product = pytest.mark.skipif(not HAS_PRODUCT, reason="this processor has no AMX")


@pytest.fixture
def thread_count():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def ours(monkeypatch):
    """The products that torch is asked for."""
    asked = []
    monkeypatch.setattr(cpu.products, "matmul", lambda a, b: asked.append((a.shape, b.shape)) or a @ b)
    return asked


def factor(rows, columns, transposed, padding):
    """A matrix whose rows, or columns if ``transposed``, lie in longer ones."""
    if transposed:
        return factor(columns, rows, False, padding).t()
    return torch.randn(rows, columns + padding)[:, :columns]


@needs_product
@pytest.mark.parametrize("seed", range(12))
def test_as_exact_as_torchs(ours, thread_count, seed):
    """Odd sizes, several slabs of each side, every way that numbers may lie."""
    draw = random.Random(int(torch.randint(1 << 31, ())) if seed else 0)
    M, N, K = (draw.choice((48, 49, 63, 64, 100, 256, 257, 513, 1050)) for _ in range(3))
    a, b = (factor(*sizes, draw.random() < 0.5, draw.choice((0, 0, 3, 16))) for sizes in ((M, K), (K, N)))
    exact = a.double() @ b.double()
    thread_count(1)
    result = cpu.matmul(a, b)
    assert result.dtype == torch.float32 and result.is_contiguous() and not ours
    error, torchs = (((each - exact).norm() / exact.norm()).item() for each in (result, a @ b))
    assert error < max(2 * torchs, 2e-7)
    thread_count(3)
    assert torch.equal(cpu.matmul(a, b), result)
    some = torch.randperm(M)[:48 + draw.randrange(M - 47)].sort().values
    assert torch.equal(cpu.matmul(a[some], b), result[some]), "a row depends on the others"


@needs_product
@pytest.mark.parametrize("value", (float("inf"), float("nan"), 1e30))
@pytest.mark.parametrize("which", (0, 1))
def test_numbers_that_are_too_large_are_torchs(ours, value, which):
    factors = torch.randn(70, 60), torch.randn(60, 50)
    factors[which][-1, -1] = value
    torch.testing.assert_close(cpu.matmul(*factors), factors[0] @ factors[1], equal_nan=True, rtol=0, atol=0)
    assert len(ours) == 1


@pytest.mark.parametrize("a, b", (
    (torch.ones(47, 64), torch.ones(64, 64)), (torch.ones(64, 47), torch.ones(47, 64)),
    (torch.ones(64, 64), torch.ones(64, 47)), (torch.ones(64, 64).double(), torch.ones(64, 64).double()),
    (torch.ones(64, 64).bfloat16(), torch.ones(64, 64).bfloat16()),
    (torch.ones(64, 128)[:, ::2], torch.ones(64, 64)), (torch.ones(64, 1).expand(64, 64), torch.ones(64, 64)),
    (torch.ones(64, 64), torch.ones(1, 64).expand(64, 64))))
def test_what_is_torchs(ours, a, b):
    """Small matrices, other dtypes, numbers that lie side by side nowhere."""
    assert torch.equal(cpu.matmul(a, b), a @ b) and len(ours) == 1


def test_an_instruction_set_without_a_product(ours):
    try:
        cpu.forced_isa = "portable"
        assert cpu.matmul(torch.ones(64, 64), torch.ones(64, 64)).eq(64).all() and len(ours) == 1
    finally:
        cpu.forced_isa = ""


@needs_product
def test_a_layer_uses_it_for_its_gradients(ours):
    """And not where the gradients are to be differentiated."""
    layer, x = FusedxLSTM(48, 64, backend="cpu"), torch.randn(20, 3, 48, requires_grad=True)
    values = [x, *layer.parameters()]
    gradients = torch.autograd.grad(layer(x)[0].square().sum(), values)
    assert not ours
    again = torch.autograd.grad(layer(x)[0].square().sum(), values, create_graph=True)
    for a, b in zip(gradients, again, strict=True):
        torch.testing.assert_close(a, b)
