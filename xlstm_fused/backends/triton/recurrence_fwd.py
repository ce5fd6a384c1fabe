"""The forward pass of every cell: one program walks a tile of sequences through all its steps.

A program has BLOCK_B sequences, one head, one direction and BLOCK_U units of it, for which it keeps the state in
registers and, where RESIDENT, its part of the recurrent matrix on chip. Where BLOCK_U covers the head (not SLICED), h
stays in the program too. Elsewhere the ``slices`` programs of a head read each other's h out of ``output``: after a
barrier where BARRIER, else in the next launch, of one step each.
"""

import triton
import triton.language as tl

from .tiles import (
    anew,
    arrays_of,
    chosen,
    cuts_at,
    group_barrier,
    load_matrix,
    load_planes,
    or_zero,
    part_of,
    place,
    rows_at,
    select,
    starts,
    store_planes,
    sums,
    zeros,
)


@triton.jit
def load_gates(weight, gate_stride, start, first_u, D: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
               G: tl.constexpr):
    """(BLOCK_K, BLOCK_U * G): rows from ``start`` of R^T, the gates of a unit side by side.

    One product for all gates: with few units, one per gate would not have columns for every warp.
    """
    inner, columns = start + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_U * G)
    unit = first_u + columns // G
    pointers = weight + (columns % G * gate_stride + unit * D)[None, :] + inner[:, None]
    return tl.load(pointers, mask=(inner[:, None] < D) & (unit[None, :] < D), other=0.0)


@triton.jit
def split_gates(values, BLOCK_U: tl.constexpr, G: tl.constexpr):
    """(BLOCK_B, BLOCK_U * G) with the gates of a unit side by side -> a tuple of G tiles."""
    tl.static_assert(G == 4, "other numbers of gates need another tree of splits")
    even, odd = values.reshape(values.shape[0], BLOCK_U, 2, 2).split()
    first, third = even.split()
    second, fourth = odd.split()
    return first, second, third, fourth


@triton.jit
def masked(h, h_mask, in_sequences, b, units, rows):
    """``h`` as it meets the recurrent matrix."""
    if h_mask is not None:
        factor = tl.load(place(h_mask, in_sequences, b, units), mask=rows, other=0.0)
        h = (h.to(tl.float32) * factor.to(tl.float32)).to(h.dtype)
    return h


@triton.jit
def load_part(h, units, h_mask, in_sequences, b, start, BLOCK_K: tl.constexpr):
    """(BLOCK_B, BLOCK_K) of h, other programs' units too, as it meets the recurrent matrix."""
    inner = start + tl.arange(0, BLOCK_K)
    there = inner[None, :] < units[:, None]
    # Not through the first-level cache: it may hold what was there before the others stored theirs.
    part = tl.load(h[:, None] + inner[None, :], mask=there, other=0.0, cache_modifier=".cg")
    return masked(part, h_mask, in_sequences, b, inner, there)


@triton.jit
def shared_product(h, units, h_mask, in_sequences, b, weight, weights, gate_stride, first_u, D: tl.constexpr,
                   BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, G: tl.constexpr, RESIDENT: tl.constexpr,
                   PRECISION: tl.constexpr):
    """R h as a tuple of G tiles, of the first ``units`` (BLOCK_B,) units of what pointers ``h`` (BLOCK_B,) point to."""
    total = tl.zeros((h.shape[0], BLOCK_U * G), tl.float32)
    if RESIDENT:
        for chunk in tl.static_range((D + BLOCK_K - 1) // BLOCK_K):
            part = load_part(h, units, h_mask, in_sequences, b, chunk * BLOCK_K, BLOCK_K)
            total = tl.dot(part, weights[chunk], total, input_precision=PRECISION)
    else:
        for start in range(0, D, BLOCK_K):
            part = load_part(h, units, h_mask, in_sequences, b, start, BLOCK_K)
            tile = load_gates(weight, gate_stride, start, first_u, D, BLOCK_U, BLOCK_K, G)
            total = tl.dot(part, tile, total, input_precision=PRECISION)
    return split_gates(total, BLOCK_U, G)


@triton.jit
def load_inputs(x, row, inputs, rows, I: tl.constexpr):
    """(BLOCK_B, BLOCK_I): what rows ``row`` (BLOCK_B,) of x (P, I) have, zero where not ``rows``."""
    return tl.load(x + row.to(tl.int64)[:, None] * I + inputs[None, :], mask=rows[:, None] & (inputs[None, :] < I),
                   other=0.0)


@triton.jit(do_not_specialize=("time_stride", "batch_stride", "T", "B", "P", "K", "N", "reverse", "first_step",
                               "end_step", "slices"))
def recurrence_fwd_kernel(
        wx,            # (P, K, G, N, D) storage, or None where I > 0: there it is x W_ih^T + bias, computed here
        x_in,          # (P, I) storage, or None
        weight_ih,     # (K, G, N, D, I) storage, or None
        bias,          # (K, G, N, D) storage, or None; may be null
        weight_hh,     # (K, G, N, D_out, D_in) storage
        h0,            # (K, B, N, D) storage, may be null
        s0,            # (S - 1, K, B, N, D) float32, may be null
        reset,         # (P,) uint8, may be null where RESETS is 0
        reset_h,       # as h0 or, where RESETS is 3, (P, K, N, D); may be null
        reset_s,       # as s0 or, where RESETS is 3, (S - 1, P, K, N, D); may be null
        h_mask,        # (K, B, N, D) storage, or None
        output,        # (P, K, N, D) storage
        h_n,           # (K, B, N, D) storage
        s_n,           # (S - 1, K, B, N, D) float32
        pre,           # (P, K, G, N, D) storage, or None together with states: inference
        states,        # (S - 1, P, K, N, D) float32, or None
        arrivals,      # (K, N, batch tiles) int32, zero; may be null unless BARRIER
        time_offset,   # (T,) int64, may be null: t * time_stride
        batch_offset,  # (B,) int64, may be null: b * batch_stride
        length,        # (B,) int64, may be null: T
        time_stride, batch_stride, T, B, P, K, N,
        reverse,               # direction k walks backwards iff (k == 1) != reverse
        first_step, end_step,  # this launch's steps; from the second launch on the state is in h_n and s_n
        slices,
        CELL_FORWARD: tl.constexpr, G: tl.constexpr, S: tl.constexpr, D: tl.constexpr,
        I: tl.constexpr, BLOCK_I: tl.constexpr,
        RESETS: tl.constexpr,  # 0 none, 1 to zero, 2 to a state per sequence, 3 to a state per row
        BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
        SLICED: tl.constexpr, RESIDENT: tl.constexpr, BARRIER: tl.constexpr, PRECISION: tl.constexpr):
    k, n, tile, b, u, here, backwards, steps, batch_row = part_of(
        slices, length, batch_offset, batch_stride, T, B, reverse, D, BLOCK_B, BLOCK_U)
    columns = u[None, :] < D
    in_rows, in_gates, in_sequences = arrays_of(k, n, P, K, B, N, D, G)
    gate_stride = N * D * D
    first_u = tl.program_id(0) % slices * BLOCK_U
    weight = weight_hh + (k.to(tl.int64) * G * N + n) * D * D
    OTHERS: tl.constexpr = S - 1
    # The products of float32, which are scalar, are made for all gates at once. Next to the cell in one basic block
    # they bring the vectorizer of Triton 3.9 down, on sm_90 and later; the change of layout is a border between them.
    JOINED: tl.constexpr = h_n.dtype.element_ty == tl.float32
    weights = ()
    if not SLICED and not JOINED:
        for g in tl.static_range(G):
            weights = weights + (load_matrix(weight + g * gate_stride, u, u, 1, D, D),)
    elif RESIDENT:
        for start in tl.static_range(0, D, BLOCK_K):
            weights = weights + (load_gates(weight, gate_stride, start, first_u, D, BLOCK_U, BLOCK_K, G),)

    inputs = tl.arange(0, BLOCK_I)
    input_weights, biases = (), ()
    if I > 0:
        tl.static_assert(not SLICED and not JOINED, "whole heads in 16 bits")
        for g in tl.static_range(G):
            gate = ((k * G + g) * N + n) * D
            tile_of_gate = tl.load(weight_ih + gate * I + u[None, :] * I + inputs[:, None],
                                   mask=columns & (inputs[:, None] < I), other=0.0)
            input_weights = input_weights + (tile_of_gate,)
            biases = biases + (tl.load(bias + gate + u, mask=u < or_zero(bias, D), other=0.0).to(tl.float32),)

    # The state: h rounded to storage, and the others.
    resumed = first_step > 0
    h_source, s_source = tl.where(resumed, h_n, h0), tl.where(resumed, s_n, s0)
    h = tl.load(place(h_source, in_sequences, b, u), mask=(b[:, None] < or_zero(h_source, B)) & columns, other=0.0)
    others = load_planes(s_source, in_sequences, b, u, (b[:, None] < or_zero(s_source, B)) & columns, 0.0, OTHERS)

    # Everything that a step reads and no step writes is loaded one step ahead.
    before = rows_at(first_step - 1, steps, backwards, time_offset, time_stride, batch_row)
    row = rows_at(first_step, steps, backwards, time_offset, time_stride, batch_row)
    if I > 0:
        x = load_inputs(x_in, row, inputs, steps > first_step, I)
    else:
        x = load_planes(wx, in_gates, row, u, (steps[:, None] > first_step) & columns, 0.0, G)
    if RESETS > 0:
        source = tl.where(backwards, before, row)
        cut = cuts_at(first_step, steps, backwards, reset, source)

    for step in range(first_step, tl.minimum(end_step, tl.max(steps, 0).to(tl.int32))):
        active = step < steps
        after = rows_at(step + 1, steps, backwards, time_offset, time_stride, batch_row)
        if I > 0:
            next_x = load_inputs(x_in, after, inputs, steps > step + 1, I)
        else:
            next_x = load_planes(wx, in_gates, after, u, (steps[:, None] > step + 1) & columns, 0.0, G)
        pre_sums = ()
        if RESETS > 0:
            in_resets = in_rows if RESETS == 3 else in_sequences
            state_index = source if RESETS == 3 else b
            if RESETS == 1:
                h = tl.where(cut[:, None], 0.0, h).to(h.dtype)
                others = select(cut, zeros(BLOCK_B, BLOCK_U, OTHERS), others, OTHERS)
            # Cuts are rare: a branch that all programs without one skip.
            elif tl.max(cut.to(tl.int32), 0) > 0:
                replaced = cut[:, None] & columns
                h = tl.where(cut[:, None], tl.load(place(reset_h, in_resets, state_index, u),
                                                   mask=replaced & (u[None, :] < or_zero(reset_h, D)), other=0.0), h)
                values = load_planes(reset_s, in_resets, state_index, u,
                                     replaced & (u[None, :] < or_zero(reset_s, D)), 0.0, OTHERS)
                others = select(cut, values, others, OTHERS)

        if not SLICED:
            # Before the products: a change of layout has barriers, over which loads of the matrix would stay in
            # registers.
            given = ()
            for g in tl.static_range(0 if JOINED else G):
                if I > 0:
                    begin = tl.zeros((BLOCK_B, BLOCK_U), tl.float32) + biases[g][None, :]
                    given = given + (tl.dot(x, input_weights[g], begin),)
                else:
                    given = given + (x[g].to(tl.float32),)
            here_h = masked(h, h_mask, in_sequences, b, u, here)
            if JOINED:
                total = tl.dot(here_h, weights[0], input_precision=PRECISION)
                pre_sums = sums(split_gates(total, BLOCK_U, G), x, G)
            for g in tl.static_range(0 if JOINED else G):
                pre_sums = pre_sums + (tl.dot(here_h, weights[g], given[g], input_precision=PRECISION),)
        else:
            # Where each sequence's h lies, and how many units of it there are: none where it is zero.
            later = step > 0
            h_before = starts(tl.where(later, output, h0), chosen(later, in_rows, in_sequences),
                              tl.where(later, before, b))
            h_units = tl.where(active, tl.where(later, D, or_zero(h0, D)), 0)
            if RESETS > 1:
                h_before = tl.where(cut, starts(reset_h, in_resets, state_index), h_before)
            if RESETS > 0:
                h_units = tl.where(cut, or_zero(reset_h, D) if RESETS > 1 else 0, h_units)
            products = shared_product(h_before, h_units, h_mask, in_sequences, b, weight, weights, gate_stride, first_u,
                                      D, BLOCK_U, BLOCK_K, G, RESIDENT, PRECISION)
            pre_sums = sums(products, x, G)

        rows = active[:, None] & columns
        state = CELL_FORWARD(pre_sums, (h.to(tl.float32),) + others)
        new_h = state[0].to(h.dtype)
        tl.store(place(output, in_rows, row, u), new_h, mask=rows)
        if pre is not None:
            store_planes(pre, in_gates, row, u, rows, pre_sums, G)
            store_planes(states, in_rows, row, u, rows, state[1:], OTHERS)
        h = tl.where(active[:, None], new_h, h)
        others = select(active, state[1:], others, OTHERS)
        if RESETS > 0:
            source = tl.where(backwards, row, after)
            cut = cuts_at(step + 1, steps, backwards, reset, source)
        before, row, x = row, after, next_x
        if BARRIER:
            group_barrier(arrivals + (k * N + n) * (tl.num_programs(0) // slices) + tile, slices * (step + 1))

    b, u = anew(b, u, T, BLOCK_U)
    here = (b[:, None] < B) & columns
    tl.store(place(h_n, in_sequences, b, u), h, mask=here)
    store_planes(s_n, in_sequences, b, u, here, others, OTHERS)
