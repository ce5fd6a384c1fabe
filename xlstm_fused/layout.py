"""The forms in which users hand over a batch of sequences, as rows and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import checks
from .rows import Rows


@dataclass(frozen=True)
class Layout:
    """One batch: its rows, and how values given per row or per sequence look to the user.

    ``time_shape`` is the shape before the features: (T, B), (B, T) if batch_first, (T,) for one unbatched sequence,
    or (rows,) for PackedSequence and cu_seqlens; ``letters`` names it in messages.
    """

    rows: Rows
    time_shape: tuple[int, ...]
    letters: str
    is_unbatched: bool = False
    packed: PackedSequence | None = None

    @classmethod
    def of(cls, data: Tensor | PackedSequence, batch_first: bool, lengths=None, cu_seqlens=None) -> Layout:
        """The layout of an input with features last: 2-D or 3-D, or packed."""
        if isinstance(data, PackedSequence):
            for name, value in (("lengths", lengths), ("cu_seqlens", cu_seqlens)):
                if value is not None:
                    raise ValueError(f"{name}: expected None beside a PackedSequence, which carries its own lengths")
            rows = Rows.packed(data.batch_sizes, data.data.shape[0], data.data.device)
            return cls(rows, (rows.P,), "(rows,)", packed=data)
        if cu_seqlens is not None:
            if lengths is not None:
                raise ValueError("lengths: expected None beside cu_seqlens, which says the same")
            if data.dim() != 2:
                raise ValueError(f"cu_seqlens: expected an input of 2 dimensions (rows, features), got {data.dim()}")
            cu_seqlens = checks.cu_seqlens(cu_seqlens, data.shape[0], data.device)
            return cls(Rows.cumulative(cu_seqlens, data.shape[0]), (data.shape[0],), "(rows,)")
        is_unbatched = data.dim() == 2
        if is_unbatched:
            (T, _), B, batch_first = data.shape, 1, False
            time_shape, letters = (T,), "(T,)"
        elif batch_first:
            B, T, _ = data.shape
            time_shape, letters = (B, T), "(B, T)"
        else:
            T, B, _ = data.shape
            time_shape, letters = (T, B), "(T, B)"
        if lengths is not None:
            lengths = checks.lengths(lengths, T, B, data.device)
        return cls(Rows.dense(T, B, batch_first, lengths), time_shape, letters, is_unbatched)

    def to_rows(self, data: Tensor | PackedSequence) -> Tensor:
        """(P, features), contiguous; padding rows are zero, so that nothing in them reaches a weight's gradient."""
        data = data.data if isinstance(data, PackedSequence) else data
        return self.zero_padding(data.reshape(self.rows.P, data.shape[-1]))

    def zero_padding(self, values: Tensor) -> Tensor:
        """(P, ..) with padding rows set to zero."""
        if not self.rows.has_padding:
            return values
        valid = self.rows.coordinates(values.device)[2]
        return torch.where(valid.reshape(-1, *[1] * (values.dim() - 1)), values, 0)

    def from_rows(self, values: Tensor) -> Tensor | PackedSequence:
        """(P, features) in the form of the input."""
        if self.packed is not None:
            return PackedSequence(values, *self.packed[1:])
        return self.tensor_from_rows(values)

    def tensor_from_rows(self, values: Tensor) -> Tensor:
        """(P, features) with the time shape of the input; of a PackedSequence, what would be its ``data``."""
        return values.reshape(*self.time_shape, values.shape[-1])

    def reset_rows(self, reset, device: torch.device) -> Tensor | None:
        """The user's reset flags as (P,) uint8."""
        if reset is None:
            return None
        checks.reset(reset, self.time_shape, self.letters, device)
        return (reset != 0).reshape(self.rows.P).to(torch.uint8)

    def state_shape(self, leading: int, features: int) -> tuple[int, ...]:
        """The shape of a user's state with one entry per sequence, ``leading`` being layers times directions."""
        return (leading, features) if self.is_unbatched else (leading, self.rows.B, features)

    @property
    def state_letters(self) -> str:
        return "(L*K, H)" if self.is_unbatched else "(L*K, B, H)"

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
