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
def arrays_of(k, n, P, K, B, N, D: tl.constexpr, G: tl.constexpr):
    """Where direction k and head n lie in arrays (P, K, N, D) of rows, (P, K, G, N, D) of their gates and (K, B, N, D)
    of sequences: of each the first element, and the elements from one row or sequence and from one gate or state to
    the next."""
    # What is 32 bits wide is at most the number of elements of the recurrent matrix.
    return (((k * N + n) * D, K * N * D, P.to(tl.int64) * K * N * D),
            ((k * G * N + n) * D, K * G * N * D, N * D),
            ((k.to(tl.int64) * B * N + n) * D, N * D, K.to(tl.int64) * B * N * D))


@triton.jit
def chosen(condition, array, other):
    """One of two of :func:`arrays_of`, by a scalar."""
    return (tl.where(condition, array[0], other[0]), tl.where(condition, array[1], other[1]),
            tl.where(condition, array[2], other[2]))


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
    # No step is past that bound: of a scalar, where one of ``steps`` would be a register for each row.
    first = tl.where(or_zero(time_offset, 1) > 0, 0, 0x7FFFFFFF)
    given = tl.load(time_offset + t, mask=(t >= first) & (t < steps), other=0)
    return tl.where(or_zero(time_offset, 1) > 0, given.to(tl.int32), t * time_stride) + batch_row


@triton.jit
def cuts_at(step, steps, backwards, reset, source):
    """(BLOCK_B,) bool: whether the state is replaced before ``step``, by the flag of row ``source``.

    A reset at row t cuts between t and t - 1 in either direction, so walking backwards it is the flag of the row
    consumed before.
    """
    return tl.load(reset + source, mask=step < tl.where(backwards & (step == 0), 0, steps), other=0) != 0


@triton.jit
def wide(number):
    """An int32 that is not negative in int64. The upper half is no sign, which would be computed and kept."""
    return number.to(tl.uint32).to(tl.int64)


@triton.jit
def starts(pointer, array, number):
    """(BLOCK_B,): pointers to unit 0 of the rows or sequences ``number`` of one of the arrays of :func:`arrays_of`."""
    return pointer + array[0] + wide(number) * wide(array[1])


@triton.jit
def place(pointer, array, number, u):
    """The same to units ``u`` of them, (BLOCK_B, BLOCK_U)."""
    # A scalar and offsets that are the same for all gates: no program keeps pointers for each of them in registers.
    return pointer + array[0] + (wide(number)[:, None] * wide(array[1]) + u[None, :])


@triton.jit
def anew(b, u, T, BLOCK_U: tl.constexpr):
    """``b`` and ``u``, by sums that the compiler does not see through: T is never negative. So it computes addresses of
    them where they are used, rather than keep those of an earlier use in registers through all steps."""
    zero = tl.minimum(T, 0)
    return b + zero, tl.max_contiguous(tl.multiple_of(u + zero, BLOCK_U), BLOCK_U)


@triton.jit
def load_planes(pointer, array, number, u, mask, other, COUNT: tl.constexpr):
    """A tuple of the tiles of COUNT gates or states."""
    values = ()
    for j in tl.static_range(COUNT):
        values = values + (tl.load(place(pointer + j * array[2], array, number, u), mask=mask, other=other),)
    return values


@triton.jit
def store_planes(pointer, array, number, u, mask, values, COUNT: tl.constexpr):
    for j in tl.static_range(COUNT):
        tl.store(place(pointer + j * array[2], array, number, u), values[j], mask=mask)


@triton.jit
def add_planes(pointer, array, number, u, mask, values, COUNT: tl.constexpr):
    """Adds to memory that only this program touches."""
    # Another thread of it may have stored what this one loads.
    tl.debug_barrier()
    old = load_planes(pointer, array, number, u, mask, 0.0, COUNT)
    store_planes(pointer, array, number, u, mask, sums(values, old, COUNT), COUNT)


@triton.jit
def floats(values, COUNT: tl.constexpr):
    """The tuple in float32."""
    result = ()
    for j in tl.static_range(COUNT):
        result = result + (values[j].to(tl.float32),)
    return result


@triton.jit
def laid_out_as(product, values, COUNT: tl.constexpr, IF: tl.constexpr):
    """The tuple, which Triton keeps in the layout of ``product``, a sum of matrix products, from here on, IF so.

    It would compute in the layout of loads what depends on loads only, and change layout, through shared memory, with
    each result that meets a product. No number is above infinity: of the comparison nothing is left in the kernel.
    """
    result = ()
    for j in tl.static_range(COUNT):
        result = result + (tl.where(product > float("inf"), 0.0, values[j]) if IF else values[j],)
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
