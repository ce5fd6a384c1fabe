"""Pictures of what happens inside a layer: gates and states, from the trace that ``FusedxLSTM(...)(x, trace=True)``
returns, and how gradients flow back through time.

Needs matplotlib: ``pip install xlstm-fused[viz]``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cells import CELLS
from .functional import recurrence
from .layout import Layout
from .module import FusedxLSTM
from .trace import LayerTrace

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

# Title and scale: of what is never negative, of a tanh, or of any number.
_GATES = {"i": ("input gate i", "positive"), "f": ("forget gate f", "positive"), "g": ("cell input g", "tanh"),
          "z": ("cell input z", "tanh"), "o": ("output gate o", "positive")}
_GRU_GATES = {"r": ("reset gate r", "positive"), "z": ("update gate z", "positive"), "n": ("candidate n", "tanh"),
              "q": ("recurrent part q", "any")}
_STATES = {"h": ("output h", "any"), "c": ("cell state c", "any"), "n": ("normaliser n", "positive"),
           "m": ("stabiliser m", "any")}


def gates(trace: Sequence[LayerTrace], batch: int = 0, layer: int = -1, *, batch_first: bool = False,
          figure: FigureBase | None = None) -> FigureBase:
    """Heat maps of the activated gates of one layer for one sequence: step across, hidden unit upwards.

    Args:
        trace: the third result of ``FusedxLSTM.forward(..., trace=True)``: one LayerTrace per layer.
        batch: which sequence; ignored for the trace of a single, unbatched sequence.
        layer: which layer, counted from 0; negative from the last.
        batch_first: whether the layer was built with ``batch_first=True``; says which axis is time.
        figure: a matplotlib Figure or SubFigure to draw into; a new one if None.

    Returns:
        The figure, one panel per gate, each with its own colour bar (gates have no unit; sigmoid gates and z, g are
        drawn on fixed scales, the exponential gates of sLSTM on the range of their values).

    Raises:
        ImportError: matplotlib is missing.
        IndexError: there is no such layer or sequence.
    """
    tensors = _layer(trace, layer).gates
    return _heat_maps(tensors, _GRU_GATES if "r" in tensors else _GATES, batch, batch_first, figure)


def states(trace: Sequence[LayerTrace], batch: int = 0, layer: int = -1, *, batch_first: bool = False,
           figure: FigureBase | None = None) -> FigureBase:
    """Heat maps of the states of one layer after each step; arguments, result and errors as in :func:`gates`."""
    return _heat_maps(_layer(trace, layer).states, _STATES, batch, batch_first, figure)


def gradient_flow(models: nn.Module | dict[str, nn.Module], x: Tensor, layer: int = -1, *,
                  loss: Callable[[Tensor], Tensor] | None = None, figure: FigureBase | None = None) -> FigureBase:
    """The norms of :func:`gradient_norms` over the steps, one line per model, on a logarithmic axis.

    Args:
        models: a layer, or a dict from name to layer; each a FusedxLSTM or an ``nn.LSTM``.
        x, layer, loss: as in :func:`gradient_norms`.
        figure: a matplotlib Figure or SubFigure to draw into; a new one if None.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is missing. The errors of :func:`gradient_norms`.
    """
    if figure is None:
        figure = _new_figure((7, 4))
    axes = figure.subplots()
    if not isinstance(models, dict):
        models = {type(models).__name__: models}
    # Two models with the same weights lie on each other: with these styles both show.
    for (name, model), style in zip(models.items(), itertools.cycle(("-", "--", "-.", ":"))):
        norms = gradient_norms(model, x, layer, loss=loss).cpu()
        # A logarithmic axis has no place for a gradient of exactly zero: leave a gap.
        axes.plot(range(len(norms)), torch.where(norms > 0, norms, torch.nan).tolist(), style, label=name)
    which = {-1: "last layer", 0: "first layer"}.get(layer, f"layer {layer}")
    axes.set(yscale="log", xlabel="step t", ylabel="norm of the gradient of the loss in h(t)",
             title=f"gradient flow through time, {which}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def gradient_norms(model: nn.Module, x: Tensor, layer: int = -1, *,
                   loss: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    r"""The norm, over batch and units, of the gradient of a loss in one layer's ``h`` after each step.

    The gradient is the total one: it counts what ``h[t]`` does to the loss through the output at step t and through
    all later steps. With ``d_pre[t + 1]`` the gradient in the pre-activations of the next step,

    .. math:: \frac{dL}{dh_t} = \frac{\partial L}{\partial h_t} + R^T \frac{dL}{d\mathrm{pre}_{t+1}}

    so that one fused forward and backward suffice.

    Args:
        model: a FusedxLSTM or an ``nn.LSTM`` without projection; run without dropout. Its gradients stay as they are.
        x: (T, B, I), (B, T, I) if the model is ``batch_first``, or (T, I).
        layer: which layer, counted from 0; negative from the last.
        loss: a function of the model's output, shaped like ``x`` with K*H features, to a scalar. By default the mean
            square of the output at the last step: what reaches step t then came through T - 1 - t steps.

    Returns:
        (T,) norms, float64. In a bidirectional layer both directions count.

    Raises:
        TypeError, ValueError: the model is neither, or has a projection, or is of cell "gru". IndexError: there
            is no such layer.
    """
    if isinstance(model, FusedxLSTM) and model.cell == "gru":
        raise ValueError("models: expected a cell that uses h only through R, got cell='gru'")
    if not isinstance(model, nn.RNNBase) or model.mode != "LSTM":
        raise TypeError(f"models: expected FusedxLSTM or nn.LSTM, got {type(model).__name__}")
    if model.proj_size:
        raise ValueError(f"models: expected proj_size = 0, got {model.proj_size}")
    if not -model.num_layers <= layer < model.num_layers:
        raise IndexError(f"layer: expected an index into {model.num_layers} layers, got {layer}")
    time = 1 if model.batch_first and x.dim() == 3 else 0
    if loss is None:
        def loss(output: Tensor) -> Tensor:
            return output.select(time, -1).square().mean()

    value, layers = x.detach(), []
    with torch.enable_grad():
        for index in range(model.num_layers):
            value, directions = _run_layer(model, index, value)
            layers.append(directions)
        outputs, wxs, matrices = zip(*layers[layer])
        gradients = torch.autograd.grad(loss(value), (*outputs, *wxs), materialize_grads=True)
    totals = []
    for k, matrix in enumerate(matrices):
        d_output, d_pre = (gradients[index].movedim(time, 0) for index in (k, k + len(matrices)))
        d_h = torch.einsum("...gnd,gnde->...ne", d_pre.unflatten(-1, matrix.shape[:3]), matrix).flatten(-2)
        nothing = torch.zeros_like(d_h[:1])
        later = torch.cat((d_h[1:], nothing) if k == 0 else (nothing, d_h[:-1]))
        totals.append((d_output + later).flatten(1))
    # Squares of small float32 numbers are zero in float32.
    norms: Tensor = torch.cat(totals, 1).double().norm(dim=1)
    return norms


def _run_layer(model: nn.RNNBase, index: int, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """One layer without dropout: its output, and ``(h, wx, R)`` of each direction, R being (G, N, D, D)."""
    cell, N = getattr(model, "cell", "lstm"), getattr(model, "num_heads", 1)
    G, directions = len(CELLS[cell].gates), []
    for suffix in ("", "_reverse")[:1 + model.bidirectional]:
        weight_ih, weight_hh, *biases = (getattr(model, f"{name}_l{index}{suffix}") for name in
                                         ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[:4 if model.bias else 2])
        # Even where all parameters are frozen, wx asks for gradients.
        wx = F.linear(x, weight_ih, sum(biases) if biases else None).requires_grad_()
        h, _ = recurrence(wx, weight_hh, cell=cell, num_heads=N, batch_first=model.batch_first, reverse=bool(suffix),
                          backend=getattr(model, "backend", "auto"))
        directions.append((h, wx, weight_hh.detach().unflatten(0, (G, N, -1))))
    output = torch.cat([h for h, _, _ in directions], -1)
    if isinstance(model, FusedxLSTM):
        layout = Layout.of(x, model.batch_first)
        output = layout.tensor_from_rows(model._join(index, layout.to_rows(x), output.flatten(0, -2), layout))
    return output, directions


def _layer(trace: Sequence[LayerTrace], layer: int) -> LayerTrace:
    if not -len(trace) <= layer < len(trace):
        raise IndexError(f"layer: expected an index into {len(trace)} layers, got {layer}")
    return trace[layer]


def _new_figure(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("xlstm_fused.viz needs matplotlib: pip install xlstm-fused[viz]") from None
    return Figure(figsize=size, layout="constrained")


def _heat_maps(tensors: dict[str, Tensor], titles: dict[str, tuple[str, str]], batch: int, batch_first: bool,
               figure: FigureBase | None) -> FigureBase:
    if figure is None:
        figure = _new_figure((3.6 * len(tensors), 3.2))
    panels = figure.subplots(1, len(tensors), sharey=True, squeeze=False)[0]
    for panel, (name, tensor) in zip(panels, tensors.items()):
        # imshow's first axis is vertical, so units go first.
        values = _sequence(tensor, batch, batch_first).detach().cpu().double().t().tolist()
        title, scale = titles.get(name, (name, "any"))
        colours, low, high = _limits(scale, values)
        image = panel.imshow(values, aspect="auto", origin="lower", interpolation="nearest", cmap=colours, vmin=low,
                             vmax=high)
        panel.set_title(title)
        panel.set_xlabel("step")
        figure.colorbar(image, ax=panel)
    panels[0].set_ylabel("hidden unit")
    return figure


def _sequence(tensor: Tensor, batch: int, batch_first: bool) -> Tensor:
    """(T, features) of one sequence of (T, B, features), (B, T, features) or (T, features)."""
    if tensor.dim() == 2:
        return tensor
    count = tensor.shape[0 if batch_first else 1]
    if not -count <= batch < count:
        raise IndexError(f"batch: expected an index into {count} sequences, got {batch}")
    return tensor[batch] if batch_first else tensor[:, batch]


def _limits(scale: str, values: list[list[float]]) -> tuple[str, float, float]:
    """Colour map and limits: from 0 for what is never negative, symmetric about 0 for what has a sign."""
    largest = max((abs(each) for row in values for each in row), default=0.0) or 1.0
    if scale == "positive":
        return "viridis", 0.0, max(largest, 1.0)
    if scale == "tanh":
        return "RdBu_r", -1.0, 1.0
    return "RdBu_r", -largest, largest
