"""Where the rows of a batch of sequences lie in memory: the one rule that all layouts share.

Step ``t`` of sequence ``b`` lives in row ``time_offset[t] + batch_offset[b]``, for ``t < length[b]``:

====================  ==========================  ====================  =========================
layout                time_offset[t]              batch_offset[b]       length[b]
====================  ==========================  ====================  =========================
``(T, B, ..)``        ``t * B``                   ``b``                 ``T`` or ``lengths``
``(B, T, ..)``        ``t``                       ``b * T``             ``T`` or ``lengths``
``PackedSequence``    ``cumsum(batch_sizes)[t]``  ``b``                 from ``batch_sizes``
``cu_seqlens``        ``t``                       ``cu_seqlens[b]``     differences
====================  ==========================  ====================  =========================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True, eq=False)
class Rows:
    """The placement of ``B`` sequences of at most ``T`` steps in ``P`` rows.

    ``time_offset`` (T,), ``batch_offset`` (B,) and ``length`` (B,) are int64 tensors on the data's device, or None
    where ``t * time_stride``, ``b * batch_stride`` and ``T`` say the same. ``has_padding`` is True where some of the
    ``P`` rows may belong to no sequence. Lengths may be 0 and need not be sorted.
    """

    T: int
    B: int
    P: int
    time_stride: int
    batch_stride: int
    time_offset: Tensor | None = None
    batch_offset: Tensor | None = None
    length: Tensor | None = None
    has_padding: bool = False

    @classmethod
    def dense(cls, T: int, B: int, batch_first: bool, lengths: Tensor | None = None) -> Rows:
        """Rows of a ``(T, B, ..)`` tensor, or of a ``(B, T, ..)`` tensor if ``batch_first``."""
        time_stride, batch_stride = (1, T) if batch_first else (B, 1)
        return cls(T, B, T * B, time_stride, batch_stride, length=lengths, has_padding=lengths is not None)

    @classmethod
    def packed(cls, batch_sizes: Tensor, total: int, device: torch.device) -> Rows:
        """Rows of ``PackedSequence.data``; ``batch_sizes`` (T,) is the CPU tensor that PackedSequence carries."""
        T, B = batch_sizes.numel(), int(batch_sizes[0])
        time_offset = torch.cumsum(batch_sizes, 0) - batch_sizes
        # batch_sizes never increases, so the steps of sequence b are those with batch_sizes > b.
        length = torch.searchsorted(-batch_sizes, -torch.arange(B))
        return cls(T, B, total, 0, 1, time_offset=time_offset.to(device), length=length.to(device))

    @classmethod
    def cumulative(cls, cu_seqlens: Tensor, total: int, longest: int | None = None) -> Rows:
        """Rows of a ``(total, ..)`` tensor of sequences laid end to end; ``cu_seqlens`` (B + 1,) starts with 0.

        Without ``longest``, the longest length, ``T`` is only an upper bound: nothing is read back from the device.
        """
        B = cu_seqlens.numel() - 1
        T = total if longest is None else longest
        return cls(T, B, total, 1, 0, batch_offset=cu_seqlens[:-1].contiguous(), length=cu_seqlens.diff())

    @property
    def is_full(self) -> bool:
        """Whether this is a dense layout in which every sequence has T steps."""
        return self.time_offset is None and self.batch_offset is None and self.length is None

    @property
    def is_batch_first(self) -> bool:
        """Whether this is the (B, T, ..) layout."""
        return self.time_stride == 1 and self.batch_stride == self.T

    def row(self, t: Tensor, b: Tensor) -> Tensor:
        """The row of step ``t`` of sequence ``b``; int64 tensors that broadcast. Out of range where ``t`` is."""
        time = t * self.time_stride if self.time_offset is None else self.time_offset[t.clamp(0, self.T - 1)]
        batch = b * self.batch_stride if self.batch_offset is None else self.batch_offset[b]
        return time + batch

    def lengths(self, device: torch.device) -> Tensor:
        """(B,) int64: the number of steps of each sequence."""
        return torch.full((self.B,), self.T, device=device) if self.length is None else self.length

    def coordinates(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """``(t, b, valid)`` of every row, each (P,); ``valid`` is False in padding rows."""
        row = torch.arange(self.P, device=device)
        if self.time_offset is not None:
            t = torch.searchsorted(self.time_offset, row, right=True) - 1
            b = row - self.time_offset[t]
        elif self.batch_offset is not None:
            b = torch.searchsorted(self.batch_offset, row, right=True) - 1
            t = row - self.batch_offset[b]
        elif self.is_batch_first:
            t, b = row % self.T, row // self.T
        else:
            t, b = row // self.B, row % self.B
        return t, b, t < self.lengths(device)[b]

    def walk(self, backwards: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        """``(row, valid)``, each (T, B): the row that step s of the walk reads; rows are in range everywhere."""
        length = self.lengths(device)
        step = torch.arange(self.T, device=device).unsqueeze(1)
        position = length - 1 - step if backwards else step.expand(self.T, self.B)
        row = self.row(position, torch.arange(self.B, device=device))
        return row.clamp(0, self.P - 1), step < length

    def first(self, backwards: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        """``(row, valid)``, each (B,): the row that a walk reads first; not valid where the length is 0."""
        length = self.lengths(device)
        position = length - 1 if backwards else torch.zeros_like(length)
        row = self.row(position, torch.arange(self.B, device=device))
        return row.clamp(0, self.P - 1), length > 0

    def previous(self, backwards: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """``(row, first, b)``, each (P,): the row that the walk visits before this one, whether there is none
        (``row`` is then any row in range), and the sequence."""
        t, b, _ = self.coordinates(device)
        first = t + 1 >= self.lengths(device)[b] if backwards else t == 0
        row = self.row(t + 1 if backwards else t - 1, b)
        return row.clamp(0, self.P - 1), first, b

    def cuts(self, reset: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
        """``(cut, source)``, each (P,): whether the state is replaced before this row is consumed, and which row's
        reset state replaces it.

        A reset at row t cuts between t and t - 1 in either direction, so a backward walk is cut before t - 1.
        """
        if not backwards:
            return reset.bool(), torch.arange(self.P, device=reset.device)
        row, first, _ = self.previous(True, reset.device)
        return reset.bool()[row] & ~first, row

    def arguments(self) -> tuple[Any, ...]:
        """The fields in the order in which the registered ops take them."""
        return (self.time_offset, self.batch_offset, self.length, self.T, self.B, self.P, self.time_stride,
                self.batch_stride, self.has_padding)

    @classmethod
    def from_arguments(cls, time_offset: Tensor | None, batch_offset: Tensor | None, length: Tensor | None, T: int,
                       B: int, P: int, time_stride: int, batch_stride: int, has_padding: bool) -> Rows:
        return cls(T, B, P, time_stride, batch_stride, time_offset, batch_offset, length, has_padding)
