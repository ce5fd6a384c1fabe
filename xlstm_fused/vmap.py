"""``torch.vmap`` of the registered ops: V problems solved as one.

With one recurrent matrix for all, V batches become one batch of V times as many sequences. With a matrix for each, V
recurrences become one with V times as many heads, if they agree on where rows lie and are reset. What remains (a
matrix and, say, lengths for each) is a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Of each argument and result: the dimension of its P or B, which counts sequences, and that of its N, the heads.
_DIMS: dict[str, tuple[Any, Any]] = {
    **dict.fromkeys(("wx", "pre", "d_pre"), (0, 3)),
    **dict.fromkeys(("output", "d_output"), (0, 2)),
    **dict.fromkeys(("states", "d_states"), (1, 3)),
    **dict.fromkeys(("h0", "h_n", "d_h_n", "h_mask"), (1, 2)),
    **dict.fromkeys(("s0", "s_n", "d_s_n"), (2, 3)),
    "weight_hh": (None, 2),
    "reset": (0, None),
    "length": (0, None),
}
_RESULTS = {
    "inference": ("output", "h_n", "s_n"),
    "forward": ("output", "h_n", "s_n", "pre", "states"),
    "backward": ("pre", "h0", "s0", "reset_h", "reset_s"),
}


def rule(op: torch._ops.OpOverload) -> Callable[..., tuple[Any, Any]]:
    """The rule of a registered op, for ``torch.library.register_vmap``."""
    arguments, results_of_op = [each.name for each in op._schema.arguments], _RESULTS[op._opname]

    def run(info: Any, in_dims: tuple[int | None, ...], *values: Any) -> tuple[Any, Any]:
        V, given, vmapped = info.batch_size, dict(zip(arguments, values)), dict(zip(arguments, in_dims))
        if vmapped["weight_hh"] is None and vmapped["time_offset"] is None:
            which, outer, rows = 0, *_more_sequences(V, given, vmapped)
        elif all(vmapped[each] is None for each in ("reset", "time_offset", "batch_offset", "length")):
            which, outer, rows = 1, True, {}
        else:
            each = [op(*(value if dim is None else value.select(dim, v).contiguous()
                           for value, dim in zip(values, in_dims))) for v in range(V)]
            return tuple(map(torch.stack, zip(*each))), (0,) * len(results_of_op)
        per_row = given["reset_per_row"]
        dims = {each: pair[which] for each, pair in
                (_DIMS | {"reset_h": (0 if per_row else 1, 2), "reset_s": (1 if per_row else 2, 3)}).items()}
        given = {each: _join(value, vmapped[each], dim, V, outer)
                 if isinstance(value, Tensor) and (dim := dims.get(each)) is not None else value
                 for each, value in given.items()}
        results = op(*(given | rows).values())
        values, out_dims = zip(*(_split(value, dims[each], V, outer) for each, value in zip(results_of_op, results)))
        return values, out_dims

    return run


def _more_sequences(V: int, given: dict[str, Any], vmapped: dict[str, int | None]) -> tuple[bool, dict[str, Any]]:
    """``(outer, rows)``: whether V is the outer part of rows and sequences, else the inner one, as the layout wants
    it to stay of its kind; and what changes in the arguments that say where rows lie."""
    T, B, P, time_offset, batch_offset = (given[name] for name in ("T", "B", "P", "time_offset", "batch_offset"))
    rows = {"B": V * B, "P": V * P}
    if time_offset is not None or given["time_stride"] != 1:
        # Step by step: (T, B, ..) and PackedSequence. Row r of problem v is row r * V + v.
        return False, rows | {"time_stride": V * given["time_stride"],
                              "time_offset": None if time_offset is None else time_offset * V}
    # Sequence by sequence: (B, T, ..), cu_seqlens, and (T, 1, ..). Row r of problem v is row v * P + r.
    if batch_offset is None:
        return True, rows | {"batch_stride": T}
    batch_offset = _join(batch_offset, vmapped["batch_offset"], 0, V, True).view(V, B)
    return True, rows | {"batch_offset": (batch_offset + P * torch.arange(V, device=batch_offset.device)[:, None])
                         .flatten()}


def _join(value: Tensor, vmapped: int | None, dim: int, V: int, outer: bool) -> Tensor:
    """V problems' values as one with V times the size in ``dim``."""
    at = dim if outer else dim + 1
    if vmapped is None:
        value = value.unsqueeze(at).expand(*value.shape[:at], V, *value.shape[at:])
    else:
        value = value.movedim(vmapped, at)
    return value.flatten(dim, dim + 1).contiguous()


def _split(value: Tensor, dim: int, V: int, outer: bool) -> tuple[Tensor, int | None]:
    """A result, and which of its dimensions is V."""
    if value.dim() == 1:
        # The gradient of a reset state that is not there.
        return value, None
    size = value.shape[dim] // V
    return value.unflatten(dim, (V, size) if outer else (size, V)), dim if outer else dim + 1
