"""Pictures of what happens inside a layer, from the trace that ``FusedxLSTM(...)(x, trace=True)`` returns.

Needs matplotlib: ``pip install xlstm-fused[viz]``.
"""

from __future__ import annotations

from torch import Tensor

_GATE_NAMES = {"i": "input gate i", "f": "forget gate f", "g": "cell input g", "z": "cell input z", "o": "output gate o"}
_STATE_NAMES = {"h": "output h", "c": "cell state c", "n": "normaliser n", "m": "stabiliser m"}


def gates(trace, batch: int = 0, layer: int = -1, *, batch_first: bool = False, figure=None):
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
    return _heat_maps(_layer(trace, layer).gates, _GATE_NAMES, batch, batch_first, figure)


def states(trace, batch: int = 0, layer: int = -1, *, batch_first: bool = False, figure=None):
    """Heat maps of the states of one layer after each step; arguments, result and errors as in :func:`gates`."""
    return _heat_maps(_layer(trace, layer).states, _STATE_NAMES, batch, batch_first, figure)


def _layer(trace, layer: int):
    if not -len(trace) <= layer < len(trace):
        raise IndexError(f"layer: expected an index into {len(trace)} layers, got {layer}")
    return trace[layer]


def _new_figure(size):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("xlstm_fused.viz needs matplotlib: pip install xlstm-fused[viz]") from None
    return Figure(figsize=size, layout="constrained")


def _heat_maps(tensors: dict[str, Tensor], titles, batch, batch_first, figure):
    if figure is None:
        figure = _new_figure((3.6 * len(tensors), 3.2))
    panels = figure.subplots(1, len(tensors), sharey=True, squeeze=False)[0]
    for panel, (name, tensor) in zip(panels, tensors.items()):
        # imshow's first axis is vertical, so units go first.
        values = _sequence(tensor, batch, batch_first).detach().cpu().double().t().tolist()
        colours, low, high = _scale(name, values)
        image = panel.imshow(values, aspect="auto", origin="lower", interpolation="nearest", cmap=colours, vmin=low,
                             vmax=high)
        panel.set_title(titles.get(name, name))
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


def _scale(name: str, values) -> tuple[str, float, float]:
    """Colour map and limits: from 0 for what is never negative, symmetric about 0 for what has a sign."""
    largest = max((abs(each) for row in values for each in row), default=0.0) or 1.0
    if name in ("i", "f", "o", "n"):
        return "viridis", 0.0, max(largest, 1.0)
    if name in ("g", "z"):
        return "RdBu_r", -1.0, 1.0
    return "RdBu_r", -largest, largest
