"""A PTX interpreter in numpy: runs on the CPU what Triton or nvcc compiled for a GPU.

The lanes of a warp run together, lowest program counter first; warps take turns as a schedule says; barriers, mbarriers
and asynchronous copies are real; shared memory starts as NaN; every access is checked for bounds and alignment, and by
vector clocks for races. It is blind to spills, limits of a launch, and time.
"""

import struct

import numpy as np

from .ptx_code import Code
from .ptx_machine import Machine
from .ptx_memory import FAR, Sparse
from .ptx_parse import Module
from .ptx_schedule import Schedule
from .ptx_types import GBASE, SHWIN, U8, PtxError

_modules = {}


class Struct:
    """A struct passed by value: ``(format, value)`` of each field as the module struct spells it, or an array for a
    pointer, laid out as C does."""

    def __init__(self, *fields):
        self.fields = [f if isinstance(f, tuple) else ("Q", f) for f in fields]


class Kernel:
    """One kernel of a PTX module, the first if no ``name`` is given."""

    def __init__(self, ptx, name=None):
        module = Module(ptx)
        entries = [f for f in module.functions.values() if f.entry and name in (None, f.name)]
        if not entries:
            raise PtxError(f"no kernel {name}: {', '.join(f.name for f in module.functions.values() if f.entry)}")
        entry = entries[0]
        self.name = entry.name
        at, self.initial, addresses = 512, [], {}
        shared, dynamic = 0, []
        inner = [v for f in module.functions.values() for v in f.variables]
        for variable in module.variables + inner:
            if variable.space == "shared":
                if variable.size == 0:
                    dynamic.append(variable)
                else:
                    addresses[variable.name] = shared = _up(shared, variable.align)
                    shared += variable.size
            elif variable.space in ("global", "const"):
                at = _up(at, max(variable.align, 256))
                addresses[variable.name] = GBASE + at
                self.initial.append((at, variable.initial, variable.size))
                at += variable.size + 256
        self.static = _up(shared, max([16, *(v.align for v in dynamic)]))
        addresses |= {v.name: self.static for v in dynamic}
        self.params, size = [], 0
        self.param_base = at = _up(at, 256)
        for variable in entry.params:
            size = _up(size, variable.align)
            addresses[variable.name] = GBASE + at + size
            self.params.append((size, variable.size))
            size += variable.size
        self.param_size = size
        self.first_buffer = _up(at + size + 256, 256)
        self.code = Code(module, entry, addresses)

    def launch(self, grid, block, args, smem=0, coop=False, cluster=1, schedule=None, seed=0, races=True,
               max_issue=20_000_000):
        """Run the kernel; returns how many instructions its warps issued.

        ``args`` are numpy arrays or Sparse ones (written back), ints, floats, Structs, bytes, or None for a null
        pointer. ``cluster`` is its size in blocks, one number or three. ``coop``: all blocks are resident at once, else
        one cluster after the other. ``schedule``: a Schedule, or the name of one with this ``seed``. ``races`` checks
        that accesses to the same memory are ordered.
        """
        grid, block, cluster = (_three(n) for n in (grid, block, cluster))
        if any(g % c for g, c in zip(grid, cluster)):
            raise PtxError(f"a grid of {grid} blocks in clusters of {cluster}")
        if isinstance(schedule, str) or schedule is None:
            schedule = Schedule(schedule or "random", seed)
        end, places = self.first_buffer, {}
        arrays = [v for a in args for v in _parts(a) if isinstance(v, np.ndarray)]
        for a in arrays:
            if not a.flags.c_contiguous:
                raise ValueError("an array that is not contiguous")
            if id(a) not in places:
                places[id(a)] = (a, end)
                end = _up(end + a.nbytes, 256) + 256
        far = [((index + 1) * FAR + begin * part.itemsize, part.nbytes, places[id(part)][1])
               for index, a in enumerate(args) if isinstance(a, Sparse) for begin, part in a.parts]
        blocks, size = int(np.prod(grid)), int(np.prod(cluster))
        resident = blocks if coop else size
        shared = self.static + smem
        stride = _up(shared, 256) + 256
        if shared > SHWIN:
            raise PtxError(f"{shared} bytes of shared memory")
        parameters = self._parameters(args, places)
        starts = list(range(0, blocks, resident))
        issued = 0
        module = {}
        for first in schedule.clusters(starts):
            machine = Machine(self.code, schedule.early, races, max_issue - issued)
            machine.dynamic = smem
            bases = [end + k * stride for k in range(resident)]
            machine.make_memory(end + resident * stride, [
                *((at, at + n) for at, _, n in self.initial), (self.param_base, self.param_base + self.param_size),
                *((at, at + a.nbytes) for a, at in places.values()), *((base, base + shared) for base in bases)], far)
            for at, data, _ in self.initial:
                data = module.get(at, data)
                machine.arena[at : at + len(data)] = np.frombuffer(data, U8)
            machine.arena[self.param_base : self.param_base + self.param_size] = parameters
            for a, at in places.values():
                machine.arena[at : at + a.nbytes] = a.reshape(-1).view(U8)
            for base in bases:
                machine.arena[base : base + shared] = 0xFF
            machine.populate(range(first, first + resident), grid, block, cluster, bases, shared)
            schedule.begin(machine)
            with np.errstate(all="ignore"):
                machine.run(schedule)
            issued += machine.issued
            module = {at: machine.arena[at : at + n].tobytes() for at, _, n in self.initial}
            for a, at in places.values():
                if a.flags.writeable:
                    a.reshape(-1).view(U8)[:] = machine.arena[at : at + a.nbytes]
        return issued

    def _parameters(self, args, places):
        raw = bytearray(self.param_size)
        args = list(args) + [None] * (len(self.params) - len(args))
        for index, ((at, size), a) in enumerate(zip(self.params, args)):
            value = _bytes((index + 1) * FAR if isinstance(a, Sparse) else a, size, places)
            if len(value) > size:
                raise PtxError(f"{len(value)} bytes for a parameter of {size}")
            raw[at : at + len(value)] = value
        return np.frombuffer(bytes(raw), U8)


def _parts(a):
    """The values that an argument is made of."""
    if isinstance(a, Sparse):
        return [part for _, part in a.parts]
    return [field for _, field in a.fields] if isinstance(a, Struct) else [a]


def _bytes(a, size, places):
    if isinstance(a, np.ndarray):
        return struct.pack("<Q", GBASE + places[id(a)][1])
    if isinstance(a, Struct):
        value = b""
        for kind, field in a.fields:
            if isinstance(field, np.ndarray) or field is None:
                field = 0 if field is None else GBASE + places[id(field)][1]
            align = max(struct.calcsize("<" + each) for each in kind.lstrip("0123456789")) if kind else 1
            value += b"\0" * (-len(value) % align) + struct.pack("<" + kind, field)
        return value
    if isinstance(a, (bytes, bytearray)):
        return bytes(a)
    if a is None:
        return b"\0" * size
    if isinstance(a, float):
        return struct.pack("<f" if size == 4 else "<d", a)
    return int(a).to_bytes(size, "little", signed=a < 0)


def _up(n, multiple):
    return -(-n // multiple) * multiple


def _three(n):
    n = (n,) if isinstance(n, (int, np.integer)) else tuple(n)
    return tuple(int(each) for each in n) + (1,) * (3 - len(n))
