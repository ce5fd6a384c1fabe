"""The forms in which users hand over a batch of sequences, as rows and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import checks
from .rows import Rows

# With ``lengths``, padding is left out of all work where it is more than this share of the rows, and can be told
# without waiting for a device: where lengths are on the CPU, wherever the data is. Below, to copy the rest costs as
# much as it saves.
_PADDING_WORTH_LEAVING = 0.1


@dataclass(slots=True, eq=False)
class Layout:
    """One batch: its rows, and how values given per row or per sequence look to the user.

    ``time_shape`` has the sizes before the features, by the letters that name them in messages: (T, B), (B, T) if
    batch_first, (T,) for one unbatched sequence, or (rows,) for PackedSequence and cu_seqlens. ``index`` (P,) says
    which of the user's rows are among ``rows``, where not all are.
    """

    rows: Rows
    time_shape: dict[str, int]
    is_unbatched: bool = False
    packed: PackedSequence | None = None
    index: Tensor | None = None

    @classmethod
    def of(cls, data: Tensor | PackedSequence, batch_first: bool, lengths: Tensor | Sequence[int] | None = None,
           cu_seqlens: Tensor | Sequence[int] | None = None) -> Layout:
        """The layout of an input with features last: 2-D or 3-D, or packed."""
        if isinstance(data, PackedSequence):
            for name, value in (("lengths", lengths), ("cu_seqlens", cu_seqlens)):
                if value is not None:
                    raise ValueError(f"{name}: expected None beside a PackedSequence, which carries its own lengths, "
                                     f"got {type(value).__name__}")
            P = data.data.shape[0]
            rows = Rows.packed(checks.batch_sizes(data.batch_sizes, P), P, data.data.device)
            return cls(rows, {"rows": P}, packed=data)
        if cu_seqlens is not None:
            if lengths is not None:
                raise ValueError("lengths: expected None beside cu_seqlens, which says the same, got "
                                 f"{type(lengths).__name__}")
            if data.dim() != 2:
                raise ValueError(f"cu_seqlens: expected an input of 2 dimensions (rows, features), got {data.dim()}")
            cu_seqlens = checks.cu_seqlens(cu_seqlens, data.shape[0], data.device)
            longest = int(cu_seqlens.diff().max()) if checks.readable(cu_seqlens) else None
            return cls(Rows.cumulative(cu_seqlens.to(data.device), data.shape[0], longest), {"rows": data.shape[0]})
        is_unbatched = data.dim() == 2
        if is_unbatched:
            (T, _), B, batch_first = data.shape, 1, False
            time_shape = {"T": T}
        elif batch_first:
            B, T, _ = data.shape
            time_shape = {"B": B, "T": T}
        else:
            T, B, _ = data.shape
            time_shape = {"T": T, "B": B}
        if lengths is not None:
            lengths = checks.lengths(lengths, T, B, data.device)
            if checks.readable(lengths) and 0 < int(lengths.sum()) <= (1 - _PADDING_WORTH_LEAVING) * T * B:
                b, t = (torch.arange(T) < lengths.unsqueeze(1)).nonzero().unbind(1)
                batch_offset, index = lengths.cumsum(0) - lengths, b * T + t if batch_first else t * B + b
                rows = Rows(int(lengths.max()), B, len(b), 1, 0, batch_offset=batch_offset.to(data.device),
                            length=lengths.to(data.device))
                return cls(rows, time_shape, is_unbatched, index=index.to(data.device))
            lengths = lengths.to(data.device)
        return cls(Rows.dense(T, B, batch_first, lengths), time_shape, is_unbatched)

    def to_rows(self, data: Tensor | PackedSequence) -> Tensor:
        """(P, features), contiguous; padding rows are zero, so that nothing in them reaches a weight's gradient."""
        data = data.data if isinstance(data, PackedSequence) else data
        return self.zero_padding(self.select(data.flatten(0, -2)))

    def select(self, values: Tensor) -> Tensor:
        """(P, ..) of the user's rows (.., ..)."""
        return values if self.index is None else values.index_select(0, self.index)

    def zero_padding(self, values: Tensor) -> Tensor:
        """(P, ..) with padding rows set to zero."""
        if not self.rows.has_padding:
            return values
        valid = self.rows.coordinates(values.device)[2]
        return torch.where(valid.reshape(-1, *[1] * (values.dim() - 1)), values, 0)

    def dropout(self, values: Tensor, p: float, training: bool) -> Tensor:
        """Dropout of (P, features). The random numbers are nn.LSTM's, which go by time first whatever the layout."""
        batch_first = next(iter(self.time_shape)) == "B"
        if not training or self.index is None and not batch_first:
            return F.dropout(values, p, training)
        factor = F.dropout(values.new_ones(self.time_shape["T"], self.rows.B, values.shape[-1]), p)
        return values * self.select((factor.transpose(0, 1) if batch_first else factor).flatten(0, 1))

    def from_rows(self, values: Tensor) -> Tensor | PackedSequence:
        """(P, features) in the form of the input."""
        if self.packed is not None:
            return PackedSequence(values, *self.packed[1:])
        return self.tensor_from_rows(values)

    def tensor_from_rows(self, values: Tensor) -> Tensor:
        """(P, features) with the time shape of the input; of a PackedSequence, what would be its ``data``."""
        if self.index is not None:
            everywhere = values.new_zeros(math.prod(self.time_shape.values()), values.shape[-1])
            values = everywhere.index_copy(0, self.index, values)
        return values.reshape(*self.time_shape.values(), values.shape[-1])

    def reset_rows(self, reset: Tensor | None, device: torch.device) -> Tensor | None:
        """The user's reset flags as (P,) uint8."""
        if reset is None:
            return None
        checks.reset(reset, self.time_shape, device)
        return self.select((reset != 0).flatten()).to(torch.uint8)

    @property
    def batch_shape(self) -> dict[str, int]:
        """What a user's state has for the sequences, by its letter: (B,), or () for one unbatched sequence."""
        return {} if self.is_unbatched else {"B": self.rows.B}

    def state_to_rows(self, value: Tensor) -> Tensor:
        """A user's state as (L*K, B, H), in the order in which the rows count sequences."""
        if self.is_unbatched:
            value = value.unsqueeze(1)
        if self.packed is not None and self.packed.sorted_indices is not None:
            value = value.index_select(1, self.packed.sorted_indices)
        return value

    def state_from_rows(self, value: Tensor) -> Tensor:
        """The reverse of :meth:`state_to_rows`."""
        if self.is_unbatched:
            return value.squeeze(1)
        if self.packed is not None and self.packed.unsorted_indices is not None:
            return value.index_select(1, self.packed.unsorted_indices)
        return value
