"""Products of whole layers in 16 bit: by torch's own kernels and, where those are slow, in float32."""

import pytest
import torch
from tolerances import relative_error

from xlstm_fused import FusedxLSTM, products

DTYPES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("in_float32", (True, False))
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(dtype, in_float32, monkeypatch):
    """Both ways round once: half a unit in the last place at most, wherever the sums are not near zero."""
    monkeypatch.setattr(products, "_IN_FLOAT32", frozenset(DTYPES if in_float32 else ()))
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((37, 19), (23, 19), (23,))]
    exact = [value.detach().double().requires_grad_() for value in inputs]
    d_result = torch.randn(37, 23, dtype=dtype)
    result, truth = products.linear(*inputs), torch.nn.functional.linear(*exact)
    assert result.dtype == dtype
    pairs = [(result, truth), (products.matmul(inputs[0].detach().t(), d_result), exact[0].t() @ d_result.double())]
    pairs += zip(torch.autograd.grad(result, inputs, d_result), torch.autograd.grad(truth, exact, d_result.double()))
    for got, expected in pairs:
        assert got.dtype == dtype and relative_error(got, expected.detach()) < torch.finfo(dtype).eps


def test_other_dtypes_stay_as_they_are():
    x, weight = torch.randn(5, 3), torch.randn(4, 3)
    assert torch.equal(products.linear(x, weight, None), torch.nn.functional.linear(x, weight))
    assert products.linear(x.double(), weight.double(), None).dtype == torch.float64
    assert torch.equal(products.matmul(x, weight.t()), x @ weight.t())


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_does_not_cast_the_factors_back(dtype, monkeypatch):
    """Under autocast the result is bit for bit that of a layer of its dtype."""
    monkeypatch.setattr(products, "_IN_FLOAT32", frozenset(DTYPES))
    layer, x = FusedxLSTM(7, 5, bias=False), torch.randn(6, 2, 7)
    with torch.autocast("cpu", dtype):
        output, _ = layer(x)
    assert output.dtype == dtype
    assert torch.equal(output, layer.to(dtype)(x.to(dtype))[0])
