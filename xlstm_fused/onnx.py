"""``torch.onnx.export``: a layer as the ``LSTM`` operator of ONNX (https://onnx.ai/onnx/operators/onnx__LSTM.html)."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from .layout import Layout
from .tracing import constant

# ONNX orders gates input, output, forget, cell; nn.LSTM and this package i, f, g, o.
_ORDER = [0, 3, 1, 2]


def is_exporting() -> bool:
    return torch.compiler.is_exporting() and _in_onnx_export()


# torch.export(strict=True), which torch.onnx.export tries when all else has failed, takes the answer to be no.
@constant
def _in_onnx_export() -> bool:
    return torch.onnx.is_in_onnx_export()


def refuse(what: str) -> NoReturn:
    raise NotImplementedError(
        "torch.onnx.export: expected FusedxLSTM with cell='lstm', num_heads=1 and proj_size=0, called with a dense "
        "input and hx only, in evaluation mode if it has recurrent_dropout, which is what ONNX has an operator for; "
        f"got {what}")


def check(module: nn.Module, layout: Layout, reset: Tensor | None, trace: bool) -> None:
    """Refuse what the operator cannot do, or does in another way."""
    for name, expected in (("cell", "lstm"), ("num_heads", 1), ("proj_size", 0)):
        if getattr(module, name) != expected:
            refuse(f"{name}={getattr(module, name)!r}")
    for what, is_there in (("lengths, cu_seqlens or a PackedSequence", not layout.rows.is_full),
                           ("reset", reset is not None), ("trace=True", trace),
                           ("recurrent_dropout in training", module.recurrent_dropout and module.training)):
        if is_there:
            refuse(what)


def layer(x: Tensor, layout: Layout, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None, h0: Tensor | None,
          s0: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """``(output (P, K*H), (h_n, c_n))`` of one LSTM layer in a dense layout, ``x`` (P, I), the states (K, B, H).

    ``weight_ih`` (K*4*H, I), ``weight_hh`` (K, 4, 1, H, H), ``bias`` (K*4*H,), ``h0`` (K, B, 1, H), ``s0``
    (1, K, B, 1, H); the last three may be None.
    """
    K, H, T, B = weight_hh.shape[0], weight_hh.shape[-1], layout.rows.T, layout.rows.B
    time = 1 if layout.rows.is_batch_first else 0
    x = x.unflatten(0, (B, T) if time else (T, B)).transpose(0, time)
    weight_ih = weight_ih.unflatten(0, (K, 4, H))[:, _ORDER].flatten(1, 2)
    weight_hh = weight_hh.squeeze(2)[:, _ORDER].flatten(1, 2)
    if bias is not None:
        # ONNX adds two biases.
        bias = bias.unflatten(0, (K, 4, H))[:, _ORDER].flatten(1)
        bias = torch.cat((bias, torch.zeros_like(bias)), 1)
    c0 = None
    if h0 is not None and s0 is not None:
        h0, c0 = h0.squeeze(2), s0[0].squeeze(2).to(x.dtype)
    output, h_n, c_n = torch.onnx.ops.symbolic_multi_out(
        "LSTM", (x, weight_ih, weight_hh, bias, None, h0, c0),
        {"hidden_size": H, "direction": "bidirectional" if K == 2 else "forward"},
        dtypes=(x.dtype,) * 3, shapes=((T, K, B, H), (K, B, H), (K, B, H)))
    # (T, K, B, H) to rows.
    return output.movedim(1, 2).transpose(0, time).flatten(0, 1).flatten(1), (h_n, c_n)
