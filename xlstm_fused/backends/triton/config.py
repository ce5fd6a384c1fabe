"""Tile choice: a pure function of the problem and the device, nothing else.

A program's part of the recurrent matrix, ``G * D * BLOCK_U`` elements, decides. While all of it fits, one program
walks alone, with no one to wait for. Beyond, ``slices`` programs share a head and meet once per step, which they can
only while all of the grid is resident: one program per multiprocessor is what every device can promise.
"""

from typing import NamedTuple


class Device(NamedTuple):
    """What the choice depends on of a GPU."""

    processors: int
    """Multiprocessors, or compute units."""
    shared_limit: int
    """Bytes of shared memory that one program can have."""
    warp_size: int = 32


class Plan(NamedTuple):
    """The programs of a launch: BLOCK_B sequences and BLOCK_U units of one head and direction each."""

    BLOCK_B: int
    BLOCK_U: int
    BLOCK_K: int
    """Rows of the recurrent matrix that meet h at a time."""
    slices: int
    """Programs that share a head, direction and tile of the batch."""
    resident: bool
    """Whether the matrix is read once; elsewhere it streams through the caches at every step."""
    barrier: bool
    """Whether the programs of a head meet once per step; elsewhere, if there are several, each step is a launch."""
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    """What is best for a pass in a dtype, sizes apart. Warps are of 32 threads."""

    alone: dict[int, int]
    """Padded D -> warps, where one program may have a head: a wider state has no room in registers."""
    resident: tuple[tuple[int, int, int], ...]
    """``(BLOCK_U, BLOCK_K, warps)`` of programs that share a head and keep the matrix, the best first."""
    streamed: tuple[tuple[int, int, int], ...]
    """The same where it streams: read at every step by each tile of the batch, first for few and wide programs."""


TILES = {
    (2, False): Tiles({16: 4, 32: 4, 64: 8, 128: 8}, ((64, 128, 8), (32, 128, 8), (16, 64, 8)),
                      ((32, 64, 8), (16, 64, 8))),
    (2, True): Tiles({16: 4, 32: 4, 64: 8, 128: 8}, ((64, 128, 8), (32, 128, 8)), ((32, 64, 8), (16, 64, 4))),
    (4, False): Tiles({16: 4, 32: 4, 64: 16}, ((64, 32, 8), (32, 32, 8)), ((32, 32, 8), (16, 32, 8))),
    (4, True): Tiles({16: 4, 32: 4, 64: 16}, (), ((32, 32, 8), (16, 32, 8))),
}
"""By itemsize and whether it is the backward pass: its product has a column per unit, the forward's GATES of them.

Chosen by what compiled kernels need (shared memory, registers, spills, seconds to compile: ``make kernels``). No GPU
has timed them yet.
"""

UNROLLED = {2: 98304, 4: 32768}
"""Itemsize -> most elements of the matrix that a program that shares a head keeps: code and the time to compile it grow
with them. Products of float32 are scalar."""
BLOCK_B = (16, 32, 64)
"""Sequences of a program. More than the first only for programs that share a head and read the matrix at every step, so
that all are resident: beside a matrix that they keep there are no registers for more."""
TILE = 1024
"""Most sequences times units of a program that shares a head."""
STAGES = 3
"""Tiles of the matrix on the way from the caches at a time, where it streams."""
INPUTS = 32
"""Most features of an input that the forward pass multiplies by their weights itself."""
REGISTERS = 65536
"""Of a multiprocessor of NVIDIA's, for all threads of its programs."""
GATES = 4
RESERVE = 24 << 10
"""Bytes of shared memory that tiles of h and of the gates change layout in, at most."""


def fits(rows: int, units: int, itemsize: int, device: Device) -> bool:
    """Whether ``rows`` rows of ``units`` units of the matrix fit into a program's shared memory."""
    return GATES * rows * units * itemsize + RESERVE <= device.shared_limit


def padded(size: int) -> int:
    """The side of a tile of ``size`` numbers: a power of two, as many as a matrix instruction takes at least."""
    return max(16, 1 << (size - 1).bit_length())


def takes_input(D: int, inputs: int, itemsize: int, device: Device) -> bool:
    """Whether the forward pass multiplies ``inputs`` features by their weights itself, so that ``wx`` is never written.

    For few of them, where one program has the whole head and both matrices fit. Not in float32: with scalar products
    for both, Triton 3.9 aborts.
    """
    side = padded(D)
    return itemsize == 2 and 0 < inputs <= INPUTS and side in TILES[itemsize, False].alone and (
        fits(side + padded(inputs), side, itemsize, device))


def keeps(D: int, units: int, chunk: int, itemsize: int, device: Device) -> bool:
    """Whether programs of ``units`` units, several of which share a head, keep their parts of the matrix."""
    rows = -(-D // chunk) * chunk
    return units < D and GATES * rows * units <= UNROLLED[itemsize] and fits(rows, units, itemsize, device)


def warps(count: int, device: Device) -> int:
    """``count`` warps of 32 threads in those of the device."""
    return max(1, count * 32 // device.warp_size)


def registers(plan: Plan, itemsize: int, device: Device) -> int | None:
    """The most that the compiler may give a thread; None leaves that to it.

    For a second program on a multiprocessor it would spill a few: in vain where there is no shared memory for the
    matrix of two.
    """
    lonely = plan.slices == 1 and 2 * (GATES * plan.BLOCK_K * plan.BLOCK_U * itemsize + RESERVE) > device.shared_limit
    return min(255, REGISTERS // (32 * plan.num_warps)) if lonely and device.warp_size == 32 else None


def plan(D: int, heads: int, B: int, itemsize: int, device: Device, backward: bool) -> Plan:
    """The tiles of a recurrence with ``heads`` matrices (heads times directions) of (GATES * D, D) and B sequences."""
    tiles = TILES[itemsize, backward]
    side = padded(D)
    if side in tiles.alone and fits(side, side, itemsize, device):
        return Plan(BLOCK_B[0], side, side, 1, True, False, warps(tiles.alone[side], device), 1)
    choices = [(units, min(chunk, side), count, True) for units, chunk, count in tiles.resident
               if keeps(D, units, min(chunk, side), itemsize, device)]
    choices += [(units, min(chunk, side), count, False) for units, chunk, count in tiles.streamed]
    for units, chunk, count, resident in choices:
        for block_b in BLOCK_B[:1] if resident else BLOCK_B:
            slices = -(-D // units)
            if block_b * units <= TILE and slices * -(-B // block_b) * heads <= device.processors:
                return Plan(block_b, units, chunk, slices, resident, True, warps(count, device),
                            1 if resident else STAGES)
    units, chunk, count, _ = choices[-len(tiles.streamed)]
    return Plan(BLOCK_B[0], units, chunk, -(-D // units), False, False, warps(count, device), STAGES)
