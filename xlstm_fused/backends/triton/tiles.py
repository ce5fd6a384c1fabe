"""What the kernels of both passes read and write: where rows lie (csrc/rows.h), and tiles of rows by units.

A pointer that stands for zeros is null, in the sense of a tensor without elements: its loads are masked out at run
time, so no kernel is compiled for its absence. Numbers of rows, steps and sequences are int32, offsets of elements
int64, offsets inside a row or a matrix int32.
"""

import triton
import triton.language as tl


@triton.jit
def or_zero(pointer, number):
    """``number`` where ``pointer`` is given, 0 where it is null: the bound of a mask."""
    return tl.where(pointer.to(tl.int64) != 0, number, 0)


@triton.jit
def part_of(slices, length, batch_offset, batch_stride, T, B, reverse, D: tl.constexpr, BLOCK_B: tl.constexpr,
            BLOCK_U: tl.constexpr):
    """``(k, n, tile, b, u, here, backwards, steps, batch_row)``: direction, head, sequences and units of this program,
    which of the tile exists, and how its sequences are walked."""
    tile, n, k = tl.program_id(0) // slices, tl.program_id(1), tl.program_id(2)
    b = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    u = tl.program_id(0) % slices * BLOCK_U + tl.arange(0, BLOCK_U)
    here = (b[:, None] < B) & (u[None, :] < D)
    steps = lengths_of(length, b, B, T)
    return k, n, tile, b, u, here, k != reverse, steps, batch_rows(batch_offset, batch_stride, b, B)


@triton.jit
def strides_of(P, K, B, N, D: tl.constexpr, RESETS: tl.constexpr):
    """Elements from one gate to the next, and from one state but h to the next: in rows, sequences, reset states."""
    in_rows, in_sequences = P.to(tl.int64) * K * N * D, K.to(tl.int64) * B * N * D
    return N * D, in_rows, in_sequences, in_rows if RESETS == 3 else in_sequences


@triton.jit
def lengths_of(length, b, B, T):
    """(BLOCK_B,) int32: the number of steps of each sequence of the tile, 0 outside the batch."""
    given = tl.load(length + b, mask=b < or_zero(length, B), other=0)
    steps = tl.where(or_zero(length, 1) > 0, tl.minimum(tl.maximum(given, 0), T), T)
    return tl.where(b < B, steps, 0).to(tl.int32)


@triton.jit
def batch_rows(batch_offset, batch_stride, b, B):
    """(BLOCK_B,) int32: what each sequence adds to the row of a time step."""
    given = tl.load(batch_offset + b, mask=b < or_zero(batch_offset, B), other=0)
    return tl.where(or_zero(batch_offset, 1) > 0, given.to(tl.int32), b * batch_stride)


@triton.jit
def rows_at(step, steps, backwards, time_offset, time_stride, batch_row):
    """(BLOCK_B,) int32: the row that each sequence's walk consumes at ``step``; any number where it has ended."""
    t = tl.where(backwards, steps - 1 - step, step)
    given = tl.load(time_offset + t, mask=(t >= 0) & (t < or_zero(time_offset, steps)), other=0)
    return tl.where(or_zero(time_offset, 1) > 0, given.to(tl.int32), t * time_stride) + batch_row


@triton.jit
def cuts_at(step, steps, backwards, reset, source):
    """(BLOCK_B,) bool: whether the state is replaced before ``step``, by the flag of row ``source``.

    A reset at row t cuts between t and t - 1 in either direction, so walking backwards it is the flag of the row
    consumed before.
    """
    return tl.load(reset + source, mask=step < tl.where(backwards & (step == 0), 0, steps), other=0) != 0


@triton.jit
def offset(row, k, K, n, N, D: tl.constexpr, G: tl.constexpr = 1):
    """(BLOCK_B,) int64: where direction k, gate 0 and head n of each row of a (P, K, G, N, D) array begin."""
    return ((row.to(tl.int64) * K + k) * G * N + n) * D


@triton.jit
def load_planes(pointer, index, plane, u, mask, other, COUNT: tl.constexpr):
    """A tuple of COUNT tiles, ``plane`` elements apart: units ``u`` from offsets ``index`` (BLOCK_B,)."""
    values = ()
    for j in tl.static_range(COUNT):
        values = values + (tl.load(pointer + j * plane + index[:, None] + u[None, :], mask=mask, other=other),)
    return values


@triton.jit
def store_planes(pointer, index, plane, u, mask, values, COUNT: tl.constexpr):
    for j in tl.static_range(COUNT):
        tl.store(pointer + j * plane + index[:, None] + u[None, :], values[j], mask=mask)


@triton.jit
def add_planes(pointer, index, plane, u, mask, values, COUNT: tl.constexpr):
    """Adds to memory that only this program touches."""
    # Another thread of it may have stored what this one loads.
    tl.debug_barrier()
    old = load_planes(pointer, index, plane, u, mask, 0.0, COUNT)
    store_planes(pointer, index, plane, u, mask, sums(values, old, COUNT), COUNT)


@triton.jit
def floats(values, COUNT: tl.constexpr):
    """The tuple in float32."""
    result = ()
    for j in tl.static_range(COUNT):
        result = result + (values[j].to(tl.float32),)
    return result


@triton.jit
def sums(a, b, COUNT: tl.constexpr):
    result = ()
    for j in tl.static_range(COUNT):
        result = result + (a[j] + b[j].to(tl.float32),)
    return result


@triton.jit
def select(condition, chosen, other, COUNT: tl.constexpr):
    """Elementwise over two tuples of tiles, ``condition`` (BLOCK_B,)."""
    result = ()
    for j in tl.static_range(COUNT):
        result = result + (tl.where(condition[:, None], chosen[j], other[j]),)
    return result


@triton.jit
def zeros(ROWS: tl.constexpr, UNITS: tl.constexpr, COUNT: tl.constexpr):
    result = ()
    for _ in tl.static_range(COUNT):
        result = result + (tl.zeros((ROWS, UNITS), tl.float32),)
    return result


@triton.jit
def load_matrix(pointer, i, j, stride_i, stride_j, D: tl.constexpr):
    """The tile of rows ``i`` and columns ``j`` of a (D, D) matrix, zero outside it."""
    mask = (i[:, None] < D) & (j[None, :] < D)
    return tl.load(pointer + i[:, None] * stride_i + j[None, :] * stride_j, mask=mask, other=0.0)


@triton.jit
def group_barrier(arrivals, target):
    """Waits until the programs that share a recurrent matrix have all arrived: ``arrivals`` is then ``target``.

    What any of them stored before is then visible to all. Every program must be resident, or this never returns.
    """
    tl.debug_barrier()
    tl.atomic_add(arrivals, 1, sem="release", scope="gpu")
    while tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()
