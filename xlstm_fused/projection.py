r"""Recurrent projection (Sak, Senior and Beaufays, arXiv 1402.1128, section 2), outside of the kernels.

With ``h = W_hr m``, ``m`` being the cell's unprojected output, ``R h[t-1] = (R W_hr) m[t-1]``: a recurrence over ``m``
with the matrix ``R W_hr``, which every backend runs as it is, and one product with ``W_hr`` over all rows afterwards.
Only an ``h`` that is no ``W_hr m`` (an initial or a reset state) is multiplied by R beforehand and added to ``wx``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .rows import Rows


def recurrence(wx: Tensor, weight_hh: Tensor, weight_hr: Tensor, h0: Tensor | None, s0: Tensor | None, rows: Rows,
               cell: str, *, reset: Tensor | None = None, reset_h: Tensor | None = None, reset_per_row: bool = False,
               **options: Any) -> ops.Results:
    """:func:`xlstm_fused.ops.recurrence` with a projection of ``h`` from H to F features.

    One head only: ``weight_hh`` (K, G, 1, H, F), ``weight_hr`` (K, F, H), ``h0`` and ``reset_h`` with F features.
    """
    K, G, _, H, F = weight_hh.shape
    matrix = weight_hh.reshape(K, G * H, F)
    if h0 is not None:
        wx = _add_initial(wx, _product(h0, matrix, G), rows, reset)
    if reset is not None and reset_h is not None:
        wx = _add_reset(wx, reset_h, matrix, reset, reset_per_row, rows)
        reset_h = reset_h.new_zeros(*reset_h.shape[:-1], H)
    m, m_n, *rest = ops.recurrence(wx, (matrix @ weight_hr).view(K, G, 1, H, H), None, s0, rows, cell, reset=reset,
                                   reset_h=reset_h, reset_per_row=reset_per_row, **options)
    output = torch.einsum("pknh,kfh->pknf", m, weight_hr)
    h_n = torch.einsum("kbnh,kfh->kbnf", m_n, weight_hr)
    if h0 is not None and rows.length is not None:
        h_n = torch.where((rows.length > 0)[:, None, None], h_n, h0)
    return output, h_n, *rest


def _product(h: Tensor, matrix: Tensor, G: int) -> Tensor:
    """R h of (K, B, 1, F), as (K, B, G, 1, H)."""
    product: Tensor = (h.squeeze(2) @ matrix.transpose(1, 2)).unflatten(2, (G, 1, -1))
    return product


def _add_initial(wx: Tensor, contribution: Tensor, rows: Rows, reset: Tensor | None) -> Tensor:
    """Add R h0 to the row that each walk reads first, unless the state is reset there."""
    row, used = map(torch.stack, zip(*(rows.first(k == 1, wx.device) for k in range(wx.shape[1]))))
    if reset is not None:
        # Only a forward walk is cut before its first row.
        used = torch.cat((used[:1] & ~reset.bool()[row[:1]], used[1:]))
    k = torch.arange(wx.shape[1], device=wx.device).unsqueeze(1)
    contribution = torch.where(used[..., None, None, None], contribution, 0)
    return wx.index_put((row, k), contribution, accumulate=True)


def _add_reset(wx: Tensor, reset_h: Tensor, matrix: Tensor, reset: Tensor, reset_per_row: bool, rows: Rows) -> Tensor:
    """Add R reset_h to every row before which the state is reset."""
    G = wx.shape[2]
    product = _product(reset_h.transpose(0, 1) if reset_per_row else reset_h, matrix, G)
    directions = []
    for k in range(wx.shape[1]):
        cut, source = rows.cuts(reset, k == 1)
        index = source if reset_per_row else rows.coordinates(wx.device)[1]
        directions.append(torch.where(cut[:, None, None, None], product[k][index], 0))
    return wx + torch.stack(directions, 1)
