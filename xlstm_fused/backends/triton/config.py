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
    """What is best for a pass in a dtype, sizes apart."""

    alone: dict[int, int]
    """Padded D -> warps of 32 threads, where one program may have a head: a wider state has no room in registers."""
    chunk: int
    """BLOCK_K of programs that share a head."""
    resident: tuple[tuple[int, int], ...]
    """``(BLOCK_U, warps of 32 threads)`` of programs that share a head and keep the matrix, the best first."""
    streamed: tuple[tuple[int, int], ...]
    """The same where it streams: read at every step by each tile of the batch, first for few and wide programs."""


TILES = {
    (2, False): Tiles({16: 4, 32: 4, 64: 8, 128: 8}, 128, ((64, 8), (32, 8), (16, 8)), ((32, 8), (16, 8))),
    (2, True): Tiles({16: 4, 32: 4, 64: 8, 128: 8}, 128, ((64, 8), (32, 4), (16, 4)), ((32, 4), (16, 4))),
    (4, False): Tiles({16: 4, 32: 4, 64: 16}, 32, ((64, 8), (32, 8), (16, 8)), ((32, 8), (16, 8))),
    (4, True): Tiles({16: 4, 32: 4, 64: 16}, 32, ((64, 8), (32, 4), (16, 4)), ((32, 4), (16, 4))),
}
"""By itemsize and whether it is the backward pass: its product has a column per unit, the forward's GATES of them.

Chosen by what compiled kernels need (shared memory, registers, spills: ``make kernels``). No GPU has timed them yet.
"""

BLOCK_B = (16, 32, 64)
"""Sequences of a program. More than the first only for programs that share a head, so that all are resident."""
TILE = 1024
"""Most sequences times units of a program that shares a head."""
GATES = 4
RESERVE = 24 << 10
"""Bytes of shared memory that tiles of h and of the gates change layout in, at most."""


def fits(rows: int, units: int, itemsize: int, device: Device) -> bool:
    """Whether ``rows`` rows of ``units`` units of the matrix fit into a program's shared memory."""
    return GATES * rows * units * itemsize + RESERVE <= device.shared_limit


def warps(count: int, device: Device) -> int:
    """``count`` warps of 32 threads in those of the device."""
    return max(1, count * 32 // device.warp_size)


def plan(D: int, heads: int, B: int, itemsize: int, device: Device, backward: bool) -> Plan:
    """The tiles of a recurrence with ``heads`` matrices (heads times directions) of (GATES * D, D) and B sequences."""
    tiles = TILES[itemsize, backward]
    padded = max(16, 1 << (D - 1).bit_length())
    if padded in tiles.alone and fits(padded, padded, itemsize, device):
        return Plan(BLOCK_B[0], padded, padded, 1, True, False, warps(tiles.alone[padded], device), 1)
    rows = -(-D // tiles.chunk) * tiles.chunk
    choices = [(*each, True) for each in tiles.resident if each[0] < padded and fits(rows, each[0], itemsize, device)]
    choices += [(*each, False) for each in tiles.streamed]
    for units, count, resident in choices:
        for block_b in BLOCK_B:
            slices = -(-D // units)
            if block_b * units <= TILE and slices * -(-B // block_b) * heads <= device.processors:
                return Plan(block_b, units, tiles.chunk, slices, resident, True, warps(count, device),
                            1 if resident else 3)
    units, count, _ = choices[0]
    return Plan(BLOCK_B[0], units, tiles.chunk, -(-D // units), False, False, warps(count, device), 3)
