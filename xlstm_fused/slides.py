"""Checkpoints of the cell that introductory slides on xLSTM show: an LSTM whose four gates are one linear map."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import Tensor

from .module import FusedxLSTM


def from_slides(state_dict: dict[str, Tensor], **options: Any) -> FusedxLSTM:
    r"""A :class:`~xlstm_fused.FusedxLSTM` with the weights of a stack of the slides' cells.

    That cell computes, with one linear map of input and output side by side,

    .. math::
        (i, f, g, o) = W [x_t; h_{t-1}] + b, \quad
        c_t = \sigma(f) c_{t-1} + \sigma(i) \tanh(g), \quad h_t = \sigma(o) \tanh(c_t)

    Assumption: the rows of W are in the order i, f, g, o, as ``i, f, g, o = gates(...).chunk(4, dim=-1)`` makes them.
    A checkpoint does not say so. For a cell with another order, permute the four blocks of rows first, or the result
    computes something else without any error.

    Args:
        state_dict: of one cell, ``gates.weight`` (4H, I + H) and ``gates.bias`` (4H,), the latter for all layers or
            none; or of a stack, the same names behind a prefix with the number of the layer, such as
            ``cells.0.gates.weight``. The slides' cell also has an ``output_gate``, which its forward never uses: it
            is left out, with a warning.
        options: further arguments of :class:`~xlstm_fused.FusedxLSTM`, such as ``batch_first``, ``residual``,
            ``layer_norm`` or ``dropout``; what of it has parameters starts as in a new layer.

    Returns:
        A layer in the dtype and on the device of the weights. ``bias_ih`` is the slides' bias and ``bias_hh`` zero.

    Raises:
        ValueError: a name or a shape is not of that layout; the message names it.
    """
    unused = [name for name in state_dict if re.search(r"(^|\.)output_gate\.(weight|bias)$", name)]
    layers: dict[tuple[tuple[int, str], ...], dict[str, Tensor]] = {}
    for name, value in state_dict.items():
        if name in unused:
            continue
        match = re.fullmatch(r"(.*?)gates\.(weight|bias)", name)
        if not match:
            raise ValueError(f"state_dict: expected names that end in gates.weight, gates.bias, output_gate.weight or "
                             f"output_gate.bias, got {name!r}")
        # By number, not by letter: layer 10 comes after layer 9.
        place = tuple((int(part) if part.isdigit() else -1, part) for part in match[1].split("."))
        layers.setdefault(place, {})[match[2]] = value
    if not layers or any("weight" not in layer for layer in layers.values()):
        raise ValueError(f"state_dict: expected a gates.weight for every layer, got {list(state_dict)}")
    parts = [layers[place] for place in sorted(layers)]
    with_bias = sum("bias" in part for part in parts)
    if with_bias not in (0, len(parts)):
        raise ValueError(f"state_dict: expected a gates.bias for all {len(parts)} layers or none, got {with_bias}")
    if unused:
        warnings.warn(f"{', '.join(unused)}: left out, since the slides' cell never uses its output_gate: o comes from "
                      "gates", stacklevel=2)

    first = parts[0]["weight"]
    H, remainder = divmod(first.shape[0], 4)
    I = first.shape[-1] - H
    for index, part in enumerate(parts):
        shape = (4 * H, (I if index == 0 else H) + H)
        if remainder or I < 1 or part["weight"].shape != shape:
            raise ValueError(f"state_dict: expected gates.weight (4H, I + H) = {shape} in layer {index}, got "
                             f"{tuple(part['weight'].shape)}")
        if with_bias and part["bias"].shape != (4 * H,):
            raise ValueError(f"state_dict: expected gates.bias (4H,) = {(4 * H,)} in layer {index}, got "
                             f"{tuple(part['bias'].shape)}")
    layer = FusedxLSTM(I, H, len(parts), bias=bool(with_bias), dtype=first.dtype, device=first.device, **options)
    with torch.no_grad():
        for index, part in enumerate(parts):
            ours = {name: getattr(layer, f"{name}_l{index}") for name in ("weight_ih", "weight_hh")}
            width = ours["weight_ih"].shape[1]
            ours["weight_ih"].copy_(part["weight"][:, :width])
            ours["weight_hh"].copy_(part["weight"][:, width:])
            if with_bias:
                getattr(layer, f"bias_ih_l{index}").copy_(part["bias"])
                getattr(layer, f"bias_hh_l{index}").zero_()
    return layer
