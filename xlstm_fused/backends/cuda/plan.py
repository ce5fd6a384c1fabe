"""How a recurrence is spread over programs (CTAs): a pure function of the problem and the device, nothing else.

A program has ``units`` units of one head and direction, a warp for each 8 of them, and a tile of sequences. Its part of
R, ``4 * units * D`` numbers, decides: registers and shared memory of one program hold a small head, those of a cluster
of up to 16 programs one four times and more as large, those of a grid, which is all of the device, the largest. What
does not fit is read from memory at every step; in the end, by a product launched for each.
"""

import functools
from typing import NamedTuple

GATES = 4
TILE = 8
"""Sequences of one tile of the matrix instruction."""
CHUNK = 64
"""Bytes of the inner dimension that a warp loads at a time."""
CLUSTERS = (2, 4, 8, 16)
WARPS = {"alone": 16, "cluster": 8, "grid": 8}
"""Most warps of a program; so many registers each thread can have."""
REGISTERS = {("alone", 1, False): 1, ("alone", 1, True): 0, ("cluster", 1, False): 8, ("cluster", 2, False): 6,
             ("cluster", 1, True): 5, ("cluster", 2, True): 3, ("grid", 1, False): 7, ("grid", 1, True): 3}
"""Chunks of R in a thread's registers by exchange, tiles and pass: ``registers`` in csrc/cuda/kernels.cuh."""
PAIRS = 128
"""8-byte parts of h that each warp of a grid's program fetches from the others' before it may use any."""
LARGEST = 2048
"""Most units of a head that programs walk through all steps with. Of a larger one most of R would be read at every
step, by few programs, and all of what they pass on as well."""
LAUNCHES, L2 = 3.0, 5.5e6
"""A model of a step with launches of its own, on an H100 or H200: microseconds of the product's and the cell's, beside
bytes per microsecond of the second-level cache, from which the product reads R."""
EXCHANGE, GRID = 0.8, {False: 3.8e8, True: 1.9e8}
"""The same of a grid's step: microseconds to pass h on, and, by pass, bytes of R times sequences per microsecond."""
INPUTS = 32
"""Most features of an input that the forward pass multiplies by W_ih itself: ``kInputs`` in csrc/cuda/plan.h."""
WATCHDOG = 10_000_000_000
"""Nanoseconds that a program waits for another before the kernel fails: 10 s."""


class Device(NamedTuple):
    """What the choice depends on of a GPU."""

    capability: tuple[int, int]
    processors: int
    """Multiprocessors."""
    shared_limit: int
    """Bytes of shared memory that one program can have."""


class Plan(NamedTuple):
    """The programs of a launch; from ``programs`` on the fields of Plan in csrc/cuda/plan.h, which explains them."""

    exchange: str
    tiles: int
    """Tiles of 8 sequences of each program."""
    warps: int
    """Of each program: one for 8 units; in a grid more, which fetch forward and multiply backward."""
    shared_bytes: int
    groups: int
    """Of programs with a full R each, which run at once and take heads and tiles in turn: exchange grid; else 1."""
    programs: int
    units: int
    chunks: int
    splits: int
    shared_chunks: int
    row_bytes: int
    partials: int
    fragments: int
    watchdog: int
    words: int
    resident: bool
    """Whether all of R stays on chip; not a field of the struct."""

    @property
    def launch(self) -> tuple[str | int, ...]:
        """How to launch: what comes before ``programs``."""
        return self[:5]

    @property
    def fields(self) -> tuple[int, ...]:
        """What the kernels are given."""
        return self[5:15]


STEPS = Plan("steps", 1, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, False)
"""No program walks: a product and a kernel for the rest are launched for each step (steps.py)."""


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _row_bytes(size: int) -> int:
    """``size`` bytes or more, 64 modulo 128: then eight lanes that load 16 bytes each meet no bank twice."""
    return _ceil(size, CHUNK) * CHUNK if _ceil(size, CHUNK) % 2 else (_ceil(size, CHUNK) + 1) * CHUNK


def plan_for(exchange: str, programs: int, tiles: int, D: int, itemsize: int, device: Device, backward: bool,
             inputs: int = 0) -> Plan | None:
    """The plan with so many programs for a head of D units, which multiply ``inputs`` features by W_ih; None if it is
    impossible."""
    units = _ceil(_ceil(D, programs), 8) * 8
    warps = keepers = units // 8
    groups = device.processors // programs if exchange == "grid" else 1
    if warps > WARPS[exchange] or groups == 0:
        return None
    if backward:
        blocks = _ceil(programs * units, 32)
        if exchange == "grid":
            warps = keepers = max(warps, min(WARPS[exchange], blocks))
        inner = _ceil(GATES * units * itemsize, CHUNK)
        splits = min(max(1, warps // blocks), inner)
        chunks = _ceil(inner, splits)
        jobs = _ceil(blocks * splits, warps)
        row_bytes = _row_bytes(splits * chunks * CHUNK)
        partials = CHUNK + tiles * TILE * row_bytes
        numbers = programs * splits * tiles * units * TILE
        fragments = partials + {"alone": 1, "cluster": 2, "grid": 0}[exchange] * numbers * 4
        words = 2 * numbers * programs
    else:
        splits, jobs, chunks = 1, 1, _ceil(D * itemsize, CHUNK)
        row_bytes = _row_bytes(max(chunks * CHUNK, programs * units * itemsize))
        partials, fragments = 0, CHUNK + 2 * tiles * TILE * row_bytes
        words = 2 * tiles * TILE * programs * units * itemsize // 4
        if exchange == "grid":
            warps = max(warps, min(WARPS[exchange], _ceil(words // 4, PAIRS)))
    wanted = jobs * chunks - min(REGISTERS[exchange, tiles, backward], chunks)
    # A thread's 16 bytes of each of four bands of 8 rows.
    chunk_bytes = keepers * 32 * 4 * 16
    # The same of W_ih, and the biases of a unit's gates.
    input_bytes = _ceil(inputs * itemsize, CHUNK) * chunk_bytes + keepers * 32 * 16 if inputs else 0
    shared_chunks = min(wanted, (device.shared_limit - fragments - input_bytes) // chunk_bytes)
    if shared_chunks < 0:
        return None
    shared_bytes = fragments + shared_chunks * chunk_bytes + input_bytes
    return Plan(exchange, tiles, warps, shared_bytes, groups, programs, units, chunks, splits, shared_chunks, row_bytes,
                partials, fragments, WATCHDOG, words if exchange == "grid" else 0, shared_chunks == wanted)


@functools.lru_cache(maxsize=1024)  # Every launch asks, and this takes longer than the launch.
def plans(D: int, heads: int, B: int, itemsize: int, device: Device, backward: bool,
          inputs: int = 0) -> tuple[Plan, ...]:
    """The plans for ``heads`` matrices (heads times directions) of (GATES * D, D) and B sequences, the best first.

    Which of them the device has room for at the moment is asked of its driver; there always is for :data:`STEPS`. With
    ``inputs``, only those that multiply as many features by W_ih, perhaps none.
    """
    if D > LARGEST:
        return () if inputs else (STEPS,)
    sizes = [("alone", 1)]
    if device.capability[0] in (9, 10):
        sizes += [("cluster", programs) for programs in CLUSTERS]
    sizes += [("grid", programs) for programs in sorted({_ceil(D, 8 * warps) for warps in range(1, WARPS["grid"] + 1)})
              if programs > 1]
    results: list[Plan] = []
    for exchange, programs in sizes:
        # Two tiles in a program take less time than two programs one after the other.
        crowded = _ceil(B, TILE) * heads * programs > device.processors
        tiles = 2 if crowded and exchange == "cluster" else 1
        plan = plan_for(exchange, programs, tiles, D, itemsize, device, backward, inputs)
        if plan is not None:
            tasks = max(1, _ceil(B, TILE * tiles) * heads)
            results.append(plan._replace(groups=min(plan.groups, tasks)))
    # Few programs have few to wait for; but reading R at every step costs more, and less to each of many. What passes
    # in a cluster takes less time than through global memory; but a cluster of 16 has few programs for so large an R,
    # and few devices have room for many of them.
    resident = [each for each in results if each.resident]
    small = [each for each in resident if each.exchange != "grid" and each.programs <= 8]
    if inputs:
        return tuple(small)
    grids = [each for each in resident if each.exchange == "grid"]
    large = [each for each in resident if each not in small + grids]
    streaming = sorted((each for each in results if not each.resident), key=lambda each: -each.programs)
    if steps_pay(D, heads, B, itemsize, backward):
        return *small, STEPS, *grids, *large, *streaming
    return *small, *grids, *large, *streaming, STEPS


def steps_pay(D: int, heads: int, B: int, itemsize: int, backward: bool) -> bool:
    """Whether launches for each step take less time than a grid that walks through all, by the models of both.

    They read R once for all sequences, where a grid's programs take those in turns. In float32 a library's product
    does not run on the tensor cores, so they do not.
    """
    size = heads * GATES * D * D * itemsize
    return itemsize == 2 and LAUNCHES + size / L2 < EXCHANGE + B * size / GRID[backward]


@functools.lru_cache(maxsize=1024)
def takes_input(D: int, inputs: int, itemsize: int, device: Device) -> bool:
    """Whether the forward pass multiplies ``inputs`` features by W_ih itself, so that ``wx`` is never written.

    For few of them, where the programs that a head of D units has in any case have room for W_ih beside R, whether they
    take one tile of sequences or, of a large batch, two.
    """
    if not 0 < inputs <= INPUTS:
        return False
    for B in (1, TILE * device.processors):
        best, beside = (plans(D, 1, B, itemsize, device, False, given)[:1] for given in (0, inputs))
        if not beside or beside[0].programs != best[0].programs:
            return False
    return True
