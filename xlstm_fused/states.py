"""States as users give them, in the form that the kernels read, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import checks
from .cells import Cell
from .dtypes import cast, state_dtype
from .layout import Layout

# What users may give: a tuple of tensors, or the tensor of a cell with one state.
Given: TypeAlias = "Tensor | Sequence[Tensor] | None"


@dataclass(slots=True, eq=False)
class States:
    """The states of all L layers and K directions: ``h`` (L*K, B, F) and ``others`` (S - 1, L*K, B, H), or, one per
    row, ``h`` (P, L*K, F) and ``others`` (S - 1, P, L*K, H). F is H, or the projection size."""

    h: Tensor
    others: Tensor
    per_row: bool

    @classmethod
    def read(cls, name: str, value: Given, like: Tensor, layout: Layout, cell: Cell, sizes: tuple[int, ...],
             leading: int | None = None, per_row_allowed: bool = False,
             other_words: Callable[[Any], Exception | None] | None = None) -> States | None:
        """Check and convert a user's tuple of states; None stays None.

        The state of a cell with one may also be given by itself. Each is (L*K, B, H), ``leading`` being L*K, or
        (B, H) if that is None; for one unbatched sequence without the B. Where allowed it may also have one
        entry per step: the time shape of the input followed by (L*K, H) or (H,). A shape that fits both means
        the former. ``sizes`` has the features of each state.

        ``other_words``, called with a value that is wrong, may return the error to raise instead of ours: nn.LSTM's.
        """
        if value is None:
            return None
        if len(cell.states) == 1 and isinstance(value, Tensor):
            value = (value,)
        per_row = False
        if not _is_usual(value, like, layout, sizes, leading):
            try:
                per_row = _is_per_row(name, value, like, layout, cell, sizes, leading, per_row_allowed)
            except (ValueError, RuntimeError) as error:
                theirs = None if other_words is None else other_words(value)
                raise theirs or error from None
        if leading is None:
            value = [tensor.unsqueeze(-2 if per_row else 0) for tensor in value]
        parts = [layout.select(tensor.flatten(0, -3)) if per_row else layout.state_to_rows(tensor) for tensor in value]
        wide = state_dtype(like.dtype)
        others = [cast(part, wide) for part in parts[1:]]
        if len(others) == 1:
            stacked = others[0].unsqueeze(0)
        else:
            stacked = torch.stack(others) if others else parts[0].new_empty(0, *parts[0].shape, dtype=wide)
        return cls(cast(parts[0], like.dtype), stacked, per_row)

    def layer(self, layer: int, K: int, N: int) -> tuple[Tensor, Tensor]:
        """``(h, s)`` of one layer as :func:`xlstm_fused.ops.recurrence` takes them, units split into N heads."""
        h, others, dim = self.h, self.others, 1 if self.per_row else 0
        if h.shape[dim] > K:
            h, others = h.narrow(dim, layer * K, K), others.narrow(dim + 1, layer * K, K)
        return _split(h, N), _split(others, N)


def by_layer(name: str, value: Any, like: Tensor, layout: Layout, cell: Cell, sizes: tuple[int, ...], L: int,
             K: int) -> Any:
    """States as a list with one tuple per layer, each (B, H), or (K, B, H) if K = 2, as the tuple of (L*K, B, H) that
    :meth:`States.read` takes. Anything else stays what it is."""
    if not isinstance(value, list) or not any(isinstance(each, (tuple, list)) for each in value):
        return value
    if len(value) != L:
        raise ValueError(f"{name}: expected one tuple of states for each of {L} layers, got {len(value)}")
    form = ({"K": K} if K > 1 else {}) | layout.batch_shape
    for index, states in enumerate(value):
        checks.state(f"{name}[{index}]", states, cell.name)
        for part, tensor, size in zip(cell.states, states, sizes):
            label = f"{name}[{index}][{part!r}]"
            checks.state_part(label, cell.states.index(part), tensor, like)
            checks.shape(label, tensor, form | {"H" if size == sizes[-1] else "F": size})
    join = torch.stack if K == 1 else torch.cat
    return tuple(join(parts) for parts in zip(*value))


def _split(value: Tensor, N: int) -> Tensor:
    """(.., H) as (.., N, D), contiguous."""
    return value.reshape(*value.shape[:-1], N, value.shape[-1] // N).contiguous()


def _is_usual(value: object, like: Tensor, layout: Layout, sizes: tuple[int, ...], leading: int | None) -> bool:
    """Whether a state is right, one per sequence, in the input's dtype. :func:`_is_per_row` knows the rest, and takes
    as long as a whole step of a small layer."""
    lead = layout.batch_shape.values() if leading is None else (leading, *layout.batch_shape.values())
    return type(value) is tuple and len(value) == len(sizes) and all(
        isinstance(tensor, Tensor) and tensor.shape == (*lead, size) and tensor.dtype == like.dtype
        and tensor.device == like.device for tensor, size in zip(value, sizes))


def _is_per_row(name: str, value: Any, like: Tensor, layout: Layout, cell: Cell, sizes: tuple[int, ...],
                leading: int | None, per_row_allowed: bool) -> bool:
    """Whether states have one entry per step instead of per sequence; an error if they fit neither."""
    checks.state(name, value, cell.name)
    layers = {} if leading is None else {"L*K": leading}
    per_sequence, per_row = layers | layout.batch_shape, layout.time_shape | layers
    forms = [per_sequence, per_row] if per_row_allowed else [per_sequence]
    for index, (part, tensor, size) in enumerate(zip(cell.states, value, sizes)):
        label = f"{name}[{part!r}]"
        checks.state_part(label, index, tensor, like)
        units = {"H" if size == sizes[-1] else "F": size}
        # The first state decides which form all have.
        forms = [forms[checks.shape(label, tensor, *(form | units for form in forms))]]
    return forms[0] is per_row
