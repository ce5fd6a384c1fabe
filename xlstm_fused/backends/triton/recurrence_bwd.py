"""The backward pass of every cell: one program walks a tile of sequences back through all its steps.

Programs are those of the forward pass. Each step has a pointwise half, the cell's gradients for the program's own
units, and a half that takes them through the recurrent matrix, for which the ``slices`` programs of a head read each
other's ``dpre``: after a barrier where BARRIER, else in the next launch.
"""

import triton
import triton.language as tl

from .tiles import (
    add_planes,
    anew,
    arrays_of,
    chosen,
    cuts_at,
    floats,
    group_barrier,
    laid_out_as,
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
def load_weights(weight, gate_stride, u, D: tl.constexpr, BLOCK_K: tl.constexpr, G: tl.constexpr):
    """(G * chunks) tiles of R, the chunks of a gate together."""
    tiles = ()
    for g in tl.static_range(G):
        for start in tl.static_range(0, D, BLOCK_K):
            outer = start + tl.arange(0, BLOCK_K)
            tiles = tiles + (load_matrix(weight + g * gate_stride, outer, u, D, 1, D),)
    return tiles


@triton.jit
def load_part(dpre, active, start, D: tl.constexpr, BLOCK_K: tl.constexpr):
    """(BLOCK_B, BLOCK_K) of one gate's dpre, other programs' units too."""
    outer = start + tl.arange(0, BLOCK_K)
    # Not through the first-level cache: it may hold what was there before the others stored theirs.
    return tl.load(dpre[:, None] + outer[None, :], mask=active[:, None] & (outer[None, :] < D), other=0.0,
                   cache_modifier=".cg")


@triton.jit
def shared_product(dpre, gate_stride, weight, weights, u, active, ROWS: tl.constexpr, D: tl.constexpr,
                   G: tl.constexpr, BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr, PRECISION: tl.constexpr):
    """R^T dpre for units ``u`` of the rows that ``dpre`` (BLOCK_B,) points to."""
    CHUNKS: tl.constexpr = (D + BLOCK_K - 1) // BLOCK_K
    total = tl.zeros((ROWS, u.shape[0]), tl.float32)
    if RESIDENT:
        for g in tl.static_range(G):
            for chunk in tl.static_range(CHUNKS):
                part = load_part(dpre + g * gate_stride, active, chunk * BLOCK_K, D, BLOCK_K)
                total = tl.dot(part, weights[g * CHUNKS + chunk], total, input_precision=PRECISION)
    else:
        # One loop for all gates: each would keep addresses of its own, and fill the pipeline of loads again.
        for i in range(G * CHUNKS):
            g = i // CHUNKS
            start = (i - g * CHUNKS) * BLOCK_K
            part = load_part(dpre + g * gate_stride, active, start, D, BLOCK_K)
            tile = load_matrix(weight + g * gate_stride * D, start + tl.arange(0, BLOCK_K), u, D, 1, D)
            total = tl.dot(part, tile, total, input_precision=PRECISION)
    return total


@triton.jit
def load_before(saved, first, step, in_rows, in_sequences, before, b, units, u, COUNT: tl.constexpr):
    """The state before ``step``, from ``saved`` rows or the ``first`` of each sequence: its first ``units`` (BLOCK_B,)
    units, zero beyond."""
    later = step > 0
    values = load_planes(tl.where(later, saved, first), chosen(later, in_rows, in_sequences),
                         tl.where(later, before, b), u, u[None, :] < units[:, None], 0.0, COUNT)
    return floats(values, COUNT)


@triton.jit
def cut_h(dh, cut, dreset_h, in_resets, state_index, u, D: tl.constexpr, RESETS: tl.constexpr):
    """``dh``, zero where the state before was a reset state, whose gradient it is."""
    if RESETS > 1:
        if tl.max(cut.to(tl.int32), 0) > 0:
            mask = cut[:, None] & (u[None, :] < or_zero(dreset_h, D))
            add_planes(dreset_h, in_resets, state_index, u, mask, (dh,), 1)
    return tl.where(cut[:, None], 0.0, dh)


@triton.jit(do_not_specialize=("time_stride", "batch_stride", "T", "B", "P", "K", "N", "reverse", "first_step",
                               "end_step", "resumed", "slices"))
def recurrence_bwd_kernel(
        weight_hh,     # (K, G, N, D_out, D_in) storage
        h0,            # (K, B, N, D) storage, may be null; None, like reset_h and output, unless READS_H
        s0,            # (S - 1, K, B, N, D) float32, may be null
        reset,         # (P,) uint8, may be null where RESETS is 0
        reset_h,       # as h0 or, where RESETS is 3, (P, K, N, D); may be null
        reset_s,       # as s0 or, where RESETS is 3, (S - 1, P, K, N, D); may be null
        h_mask,        # (K, B, N, D) storage, or None
        pre,           # (P, K, G, N, D) storage
        states,        # (S - 1, P, K, N, D) float32
        output,        # (P, K, N, D) storage, or None
        d_output,      # (P, K, N, D) storage, may be null
        d_h_n,         # (K, B, N, D) storage, may be null
        d_s_n,         # (S - 1, K, B, N, D) float32, may be null
        d_pre,         # (P, K, G, N, D) storage, or None
        d_states,      # (S - 1, P, K, N, D) float32, or None
        dpre,          # (P, K, G, N, D) storage
        dh0,           # (K, B, N, D) storage, or float32 where resumed may be 1
        ds0,           # (S - 1, K, B, N, D) float32
        dreset_h,      # as reset_h, and float32 unless RESETS is 3; zero before the first launch; may be null
        dreset_s,      # as reset_s; zero before the first launch; may be null
        arrivals,      # (K, N, batch tiles) int32, zero; may be null unless BARRIER
        time_offset,   # (T,) int64, may be null: t * time_stride
        batch_offset,  # (B,) int64, may be null: b * batch_stride
        length,        # (B,) int64, may be null: T
        time_stride, batch_stride, T, B, P, K, N,
        reverse,               # direction k walks backwards iff (k == 1) != reverse
        first_step, end_step,  # this launch's steps, last first
        resumed,               # whether there was a launch before, for the steps from end_step on
        slices,
        CELL_BACKWARD: tl.constexpr, READS_H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, D: tl.constexpr,
        RESETS: tl.constexpr,  # 0 none, 1 to zero, 2 to a state per sequence, 3 to a state per row
        BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
        SLICED: tl.constexpr, RESIDENT: tl.constexpr, BARRIER: tl.constexpr, PRECISION: tl.constexpr):
    k, n, tile, b, u, here, backwards, steps, batch_row = part_of(
        slices, length, batch_offset, batch_stride, T, B, reverse, D, BLOCK_B, BLOCK_U)
    columns = u[None, :] < D
    in_rows, in_gates, in_sequences = arrays_of(k, n, P, K, B, N, D, G)
    in_resets = in_rows if RESETS == 3 else in_sequences
    weight = weight_hh + (k.to(tl.int64) * G * N + n) * D * D
    OTHERS: tl.constexpr = S - 1
    # Not where scalar products of float32 follow the cell: in one layout both are one basic block, which brings the
    # vectorizer of Triton 3.9 down.
    LAID_OUT: tl.constexpr = SLICED or PRECISION == "tf32" or dpre.dtype.element_ty != tl.float32
    weights = ()
    if RESIDENT:
        weights = load_weights(weight, N * D * D, u, D, BLOCK_K, G)
    factor = None
    if h_mask is not None:
        factor = tl.load(place(h_mask, in_sequences, b, u), mask=here, other=0.0).to(tl.float32)

    # Gradients of the state after the step at hand; in the loop with that of its output.
    dh_source, ds_source = tl.where(resumed > 0, dh0, d_h_n), tl.where(resumed > 0, ds0, d_s_n)
    dh = tl.load(place(dh_source, in_sequences, b, u), mask=(b[:, None] < or_zero(dh_source, B)) & columns,
                 other=0.0).to(tl.float32)
    ds = load_planes(ds_source, in_sequences, b, u, (b[:, None] < or_zero(ds_source, B)) & columns, 0.0, OTHERS)

    # Everything that a step reads and no step writes is loaded one step ahead.
    stop = tl.minimum(end_step, tl.max(steps, 0).to(tl.int32))
    row = rows_at(stop - 1, steps, backwards, time_offset, time_stride, batch_row)
    begun = (tl.where(stop > first_step, steps, -1)[:, None] >= stop) & columns
    x = load_planes(pre, in_gates, row, u, begun, 0.0, G)
    after = load_planes(states, in_rows, row, u, begun, 0.0, OTHERS)
    d_out = tl.load(place(d_output, in_rows, row, u), mask=begun & (u[None, :] < or_zero(d_output, D)), other=0.0)
    d_out = d_out.to(tl.float32)

    if SLICED and not BARRIER:
        # The launch before left this to do, for the sequences that it has walked in.
        last = rows_at(end_step, steps, backwards, time_offset, time_stride, batch_row)
        ended = tl.where(resumed > 0, steps, 0) > end_step
        product = shared_product(starts(dpre, in_gates, last), N * D, weight, weights, u, ended, BLOCK_B, D, G, BLOCK_K,
                                 RESIDENT, PRECISION)
        if h_mask is not None:
            product *= factor
        if READS_H:
            product += dh
        dh = tl.where(ended[:, None], product, dh)
        if RESETS > 0:
            source = tl.where(backwards, row, last)
            cut = cuts_at(end_step, tl.where(resumed > 0, steps, 0), backwards, reset, source)
            dh = cut_h(dh, cut, dreset_h, in_resets, source if RESETS == 3 else b, u, D, RESETS)
    dh += d_out

    for i in range(stop - first_step):
        step = stop - 1 - i
        active = step < steps
        rows = active[:, None] & columns
        before = rows_at(step - 1, steps, backwards, time_offset, time_stride, batch_row)
        # How many units of the state before this step there are: none where it is zero.
        has_before = tl.where(step > 0, step <= steps, b < B)
        s_units = tl.where(has_before, tl.where(step > 0, D, or_zero(s0, D)), 0)
        s = laid_out_as(dh, load_before(states, s0, step, in_rows, in_sequences, before, b, s_units, u, OTHERS), OTHERS,
                        LAID_OUT)
        h = (tl.zeros((BLOCK_B, BLOCK_U), tl.float32),)
        if READS_H:
            h_units = tl.where(has_before, tl.where(step > 0, D, or_zero(h0, D)), 0)
            h = laid_out_as(dh, load_before(output, h0, step, in_rows, in_sequences, before, b, h_units, u, 1), 1,
                            LAID_OUT)
        if RESETS > 0:
            source = tl.where(backwards, before, row)
            cut = cuts_at(step, steps, backwards, reset, source)
            state_index = source if RESETS == 3 else b
            if RESETS == 1:
                s = select(cut, zeros(BLOCK_B, BLOCK_U, OTHERS), s, OTHERS)
                h = select(cut, zeros(BLOCK_B, BLOCK_U, 1), h, 1)
            elif tl.max(cut.to(tl.int32), 0) > 0:
                mask = cut[:, None] & (u[None, :] < or_zero(reset_s, D))
                s = select(cut, load_planes(reset_s, in_resets, state_index, u, mask, 0.0, OTHERS), s, OTHERS)
                if READS_H:
                    mask = cut[:, None] & (u[None, :] < or_zero(reset_h, D))
                    h = select(cut, floats(load_planes(reset_h, in_resets, state_index, u, mask, 0.0, 1), 1), h, 1)

        # Ones outside: a state that every cell can divide by, so that nothing masked out is NaN in the product.
        s_after = ()
        for j in tl.static_range(OTHERS):
            s_after = s_after + (tl.where(rows, after[j], 1.0),)
        d_after = ds
        if d_states is not None:
            d_after = sums(ds, load_planes(d_states, in_rows, row, u, rows, 0.0, OTHERS), OTHERS)
        nothing = tl.zeros((BLOCK_B, BLOCK_U), tl.float32)
        d_gates, d_state = CELL_BACKWARD(laid_out_as(dh, floats(x, G), G, LAID_OUT), h + s, (nothing,) + s_after,
                                         (dh,) + d_after)
        if d_pre is not None:
            d_gates = sums(d_gates, load_planes(d_pre, in_gates, row, u, rows, 0.0, G), G)
        stored = ()
        for g in tl.static_range(G):
            stored = stored + (d_gates[g].to(dpre.dtype.element_ty),)
        store_planes(dpre, in_gates, row, u, rows, stored, G)

        if READS_H:
            # What is left of dh until the product, in this launch or the next, is added to it.
            dh = tl.where(active[:, None], d_state[0], dh)
        ds = select(active, d_state[1:], ds, OTHERS)
        if RESETS > 0:
            if tl.max(cut.to(tl.int32), 0) > 0:
                if RESETS > 1:
                    mask = cut[:, None] & (u[None, :] < or_zero(dreset_s, D))
                    add_planes(dreset_s, in_resets, state_index, u, mask, ds, OTHERS)
                ds = select(cut, zeros(BLOCK_B, BLOCK_U, OTHERS), ds, OTHERS)
                # Loaded again, rather than kept beside the reset state in registers all the time.
                s = laid_out_as(dh, load_before(states, s0, step, in_rows, in_sequences, before, b, s_units, u, OTHERS),
                                OTHERS, LAID_OUT)

        # Behind the cell, whose registers are free now, and ahead of the product, which hides the loads.
        begun = (tl.where(step > 0, steps, -1)[:, None] >= step) & columns
        x = load_planes(pre, in_gates, before, u, begun, 0.0, G)
        d_out = tl.load(place(d_output, in_rows, before, u), mask=begun & (u[None, :] < or_zero(d_output, D)),
                        other=0.0).to(tl.float32)
        if BARRIER:
            group_barrier(arrivals + (k * N + n) * (tl.num_programs(0) // slices) + tile, slices * (i + 1))
        if not SLICED or BARRIER:
            if SLICED:
                product = shared_product(starts(dpre, in_gates, row), N * D, weight, weights, u, active, BLOCK_B, D, G,
                                         BLOCK_K, RESIDENT, PRECISION)
            else:
                product = tl.zeros((BLOCK_B, BLOCK_U), tl.float32)
                for g in tl.static_range(G):
                    product = tl.dot(stored[g], weights[g], product, input_precision=PRECISION)
            if h_mask is not None:
                product *= factor
            if READS_H:
                product += dh
            dh = tl.where(active[:, None], product, dh)
            if RESETS > 0:
                dh = cut_h(dh, cut, dreset_h, in_resets, state_index, u, D, RESETS)
            dh += d_out
        row, after = before, s

    b, u = anew(b, u, T, BLOCK_U)
    B += tl.minimum(T, 0)
    in_sequences = arrays_of(k, n, P, K, B, N, D, G)[2]
    here = (b[:, None] < B) & columns
    tl.store(place(dh0, in_sequences, b, u), dh, mask=here)
    store_planes(ds0, in_sequences, b, u, here, ds, OTHERS)
