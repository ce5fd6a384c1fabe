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


GATES = 4
RESERVE = 24 << 10
"""Bytes of shared memory that tiles of h and of the gates change layout in, at most."""
ALONE = {2: 128, 4: 64}
"""Largest padded D of one program by itemsize: a wider tile of the state has no room in registers."""


def fits(rows, units, itemsize, device):
    """Whether ``rows`` rows of ``units`` units of the matrix fit into a program's shared memory."""
    return GATES * rows * units * itemsize + RESERVE <= device.shared_limit


def warps(count, device):
    """``count`` warps of 32 threads in those of the device."""
    return max(1, count * 32 // device.warp_size)


def shared_warps(units, backward, device):
    """Of a program that shares a head: the forward product has GATES columns for a unit, the backward one a single."""
    return warps(4 if backward and units <= 32 else 8, device)


def plan(D, heads, B, itemsize, device, backward):
    """The tiles of a recurrence with ``heads`` matrices (heads times directions) of (GATES * D, D) and B sequences."""
    padded = max(16, 1 << (D - 1).bit_length())
    if padded <= ALONE[itemsize] and fits(padded, padded, itemsize, device):
        return Plan(16, padded, padded, 1, True, False,
                    warps(4 if padded <= 32 else 8, device), 1)
    chunk = 128 if itemsize == 2 else 32
    rows = -(-D // chunk) * chunk
    choices = [(units, True) for units in (64, 32, 16) if units < padded and fits(rows, units, itemsize, device)]
    # Streamed, the matrix is read at every step by each tile of the batch: first for few and wide programs.
    choices += [(32, False), (16, False)]
    for units, resident in choices:
        for block_b in (16, 32, 64):
            slices, tiles = -(-D // units), -(-B // block_b)
            if block_b * units <= 1024 and slices * tiles * heads <= device.processors:
                return Plan(block_b, units, chunk, slices, resident, True, shared_warps(units, backward, device),
                            1 if resident else 3)
    units, resident = choices[0]
    return Plan(16, units, chunk, -(-D // units), False, False, shared_warps(units, backward, device), 3)
