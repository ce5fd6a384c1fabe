"""Problems that begin with an input: ``x``, ``weight_ih`` and perhaps ``bias`` in place of ``wx``."""

import torch
from test_reference import through_autograd

from xlstm_fused import ops, products


def with_input(problem, I):
    """The problem with ``x``, ``weight_ih`` and ``bias`` in place of ``wx``."""
    P, *gates = problem.tensors.pop("wx").shape
    features, dtype = torch.Size(gates).numel(), problem.tensors["weight_hh"].dtype
    given = {"x": torch.randn(P, I), "weight_ih": torch.randn(features, I) / I**0.5, "bias": torch.randn(features)}
    problem.tensors = {name: value.to(dtype) for name, value in given.items()} | problem.tensors
    return problem


def input_of(tensors):
    return tensors["x"], tensors["weight_ih"], tensors.get("bias")


def two_steps(tensors, problem):
    K, G, N, D, _ = tensors["weight_hh"].shape
    wx = products.linear(*input_of(tensors)).view(-1, K, G, N, D)
    return through_autograd({"wx": wx, **tensors}, problem)


def from_input(tensors, problem, backend):
    """The same as :func:`test_reference.through_ops`."""
    get = tensors.get
    return ops.recurrence_from_input(
        *input_of(tensors), get("weight_hh"), get("h0"), get("s0"), problem.rows, problem.cell, reset=problem.reset,
        reset_h=get("reset_h"), reset_s=get("reset_s"), reset_per_row=problem.reset_per_row, h_mask=problem.h_mask,
        backend=backend, save=True)
