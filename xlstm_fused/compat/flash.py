"""FlashRNN's function, and its weights, on our recurrence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..cells import CELLS
from ..functional import recurrence

GATES = 4
FUNCTIONS = ("lstm", "slstm")
THEIR_BACKENDS = ("vanilla", "vanilla_fwbw", "cuda", "cuda_fused", "triton_fused")
THEIR_DTYPES = (None, "bfloat16", "float16", "float32", "float64")


def _permuted(name: str, value: Tensor, shape: str, wanted: str) -> Tensor:
    """``value``, whose dimensions the letters of ``shape`` name, with its dimensions ordered as in ``wanted``."""
    checks.tensor(name, value)
    if not isinstance(shape, str) or sorted(shape) != sorted(wanted):
        raise ValueError(f"{name}: expected a shape of the letters {wanted}, got {shape!r}")
    if value.dim() != len(shape):
        raise ValueError(f"{name}: expected {len(shape)} dimensions ({', '.join(shape)}), got {value.dim()}")
    return value.permute([shape.index(letter) for letter in wanted])


def _function(function: str) -> None:
    if function not in FUNCTIONS:
        raise ValueError(f"function: expected one of {FUNCTIONS}, the cells that this package has, got {function!r}")


def from_flashrnn(Wx: Tensor, R: Tensor, b: Tensor, *, function: str = "lstm", input_shape: str = "BTGHD",
                  recurrent_shape: str = "GHDP", bias_shape: str = "GHD") -> tuple[Tensor, Tensor]:
    """FlashRNN's arguments as those of :func:`xlstm_fused.recurrence`, by permutations that gradients pass through.

    Letters as in FlashRNN: B batch, T time, G = 4 gates (i, f, z, o; z is our g of the LSTM), H heads, D units of a
    head, P units of a head one step before.

    Args:
        Wx: the projected inputs, (B, T, G, H, D), or ordered as ``input_shape`` says.
        R: the recurrent weights, (G, H, D, P), or ordered as ``recurrent_shape`` says.
        b: the biases, (G, H, D), or ordered as ``bias_shape`` says.
        function: "lstm" or "slstm"; both have the same layout.

    Returns:
        ``(wx, weight_hh)``: wx (B, T, G*H*D) if B comes before T in ``input_shape``, else (T, B, G*H*D), bias
        included; weight_hh (G*H*D, D). Call ``recurrence(wx, weight_hh, cell=function, num_heads=H,
        batch_first=...)``.

    Raises:
        TypeError, ValueError: an argument has a wrong type or shape, or an unknown layout or function.

    Source: FlashRNN 1.0.8, ``FlashRNNConfig`` (``input_shape``, ``recurrent_shape``, ``bias_shape``).
    """
    _function(function)
    batch_first = input_shape.find("B") < input_shape.find("T") if isinstance(input_shape, str) else True
    wx = _permuted("Wx", Wx, input_shape, "BTGHD" if batch_first else "TBGHD")
    R = _permuted("R", R, recurrent_shape, "GHDP")
    b = _permuted("b", b, bias_shape, "GHD")
    heads, D = wx.shape[-2:]
    checks.shape("Wx", wx[0, 0], {"G": GATES, "H": heads, "D": D})
    checks.shape("R", R, {"G": GATES, "H": heads, "D": D, "P": D})
    checks.shape("b", b, {"G": GATES, "H": heads, "D": D})
    return (wx + b.to(wx.dtype)).flatten(2), R.reshape(-1, D).to(wx.dtype)


def flashrnn(Wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None = None, function: str = "lstm",
             config: Any = None, backend: str = "auto", dtype: str | None = None) -> tuple[Tensor, Tensor]:
    """FlashRNN's function of this name, on any device, for any batch and head size.

    Args:
        Wx: (B, T, G, H, D), G = 4 gates, H heads; float32, float64, bfloat16 or float16, in which it is computed.
        R: (G, H, D, P). b: (G, H, D). Cast to the dtype of ``Wx``.
        states: (S, B, 1, H, D), S = 2 (h, c) or 4 (h, c, n, m); zeros if None.
        function: "lstm" or "slstm"; FlashRNN's "gru" and "elman" are no cells of this package.
        config: None, or a FlashRNNConfig, whose function, input_shape, recurrent_shape, bias_shape, output_shape and
            initial_val hold. One that cuts or clips gradients or clips outputs is refused.
        backend: "auto" or a name from :func:`xlstm_fused.backends`. Names of FlashRNN's own backends mean "auto".
        dtype: the dtype of FlashRNN's kernels, read only to accept its calls: the dtype of ``Wx`` decides here.

    Returns:
        ``(states of every step (S, B, T, H, D), states after the last (S, B, 1, H, D))``, in the dtype of ``Wx``,
        ordered as ``output_shape`` says.

    Where definitions differ. FlashRNN floors ``n`` of the sLSTM at 1, and asks whether ``n`` is zero everywhere; here
    ``n`` has no floor, and each element is asked. It also does not cap the forget gate at 1. So values agree from
    zero states and from any states that FlashRNN returned, and differ from states with an ``n`` below 1 that is not
    zero everywhere. Gradients agree too, but for those with respect to ``c`` and ``n`` of a zero state, which are
    those of a capped gate here.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype or shape, or a value that is not supported.

    Source: FlashRNN 1.0.8, ``flashrnn`` with backend="vanilla".
    """
    shapes, output_shape, initial = {}, "SBTHD", 0.0
    if config is not None:
        for name in ("gradient_recurrent_cut", "gradient_recurrent_clipval", "forward_clipval"):
            if getattr(config, name):
                raise ValueError(f"config.{name}: expected none, since results here are exact, "
                                 f"got {getattr(config, name)}")
        shapes = {name: getattr(config, name) for name in ("input_shape", "recurrent_shape", "bias_shape")}
        function, output_shape, initial = config.function, config.output_shape, config.initial_val
    if dtype not in THEIR_DTYPES:
        raise ValueError(f"dtype: expected one of {THEIR_DTYPES}, got {dtype!r}")
    wx, weight_hh = from_flashrnn(Wx, R, b, function=function, **shapes)
    letters = shapes.get("input_shape", "BTGHD")
    batch_first = letters.index("B") < letters.index("T")
    S, D = len(CELLS[function].states), weight_hh.shape[1]
    B, heads = Wx.shape[letters.index("B")], Wx.shape[letters.index("H")]
    first = None
    if states is not None:
        states = _permuted("states", states, output_shape, "SBTHD")
        checks.shape("states", states, {"S": S, "B": B, "T": 1, "H": heads, "D": D})
        first = states.reshape(S, B, heads * D).unbind(0)
    elif initial != 0.0:
        first = wx.new_tensor(initial).expand(S)[:, None, None].expand(S, B, heads * D).unbind(0)
    _, last, trace = recurrence(wx, weight_hh, first, cell=function, num_heads=heads, batch_first=batch_first,
                                trace=True, backend="auto" if backend in THEIR_BACKENDS else backend)
    every = torch.stack([value.to(wx.dtype) for value in trace.states.values()])
    every = every if batch_first else every.transpose(1, 2)
    final = torch.stack([value.to(wx.dtype) for value in last]).unsqueeze(2)
    every, final = (_permuted("states", value.unflatten(-1, (heads, D)), "SBTHD", output_shape)
                    for value in (every, final))
    return every, final
