"""Loads, stores and atomics of the PTX interpreter: one array of bytes holds global memory and all shared memories."""

from typing import NamedTuple

import numpy as np

from .ptx_races import Published
from .ptx_types import GBASE, LOCAL_BASE, SHARED_BASE, SHWIN, U8, U32, U64, UOF, PtxError

FAR = 1 << 44
"""Multiples of it are the addresses where :class:`Sparse` arguments begin."""

SIZES = (1, 2, 4, 8, 16, 32)
_GLOBAL, _SHIFT, _WINDOW = U64(GBASE), {s: U64(s.bit_length() - 1) for s in SIZES}, U64(SHWIN.bit_length() - 1)


class Sparse(NamedTuple):
    """An argument of which only some parts are in memory; any other element is out of bounds."""

    parts: list
    """``(index of the first element, contiguous numpy array)`` of each part."""


class Views:
    """An array of bytes as elements of every size, and as rows of ``n`` of them."""

    def __init__(self, data):
        self.data = data
        self.last = {s: U64(data.size // s - 1) for s in SIZES}
        self.of = {}

    def rows(self, size, n):
        """Rows of ``n`` unsigned integers of ``size`` bytes, or elements for n = 1."""
        if (size, n) not in self.of:
            view = self.data.view(UOF[size])
            self.of[size, n] = view if n == 1 else view.reshape(-1, n)
        return self.of[size, n]


class Memory:
    """Part of the machine."""

    def make_memory(self, size, valid, far=()):
        """Zeros; ``valid`` are the ranges that exist, ``far`` address, bytes and offset of those seen elsewhere."""
        self.far = far
        self.arena = np.zeros(size, U8)
        self.memory = Views(self.arena)
        exists = np.zeros(size, np.bool_)
        for begin, end in valid:
            exists[begin:end] = True
        self.bad = {s: (~exists.reshape(-1, s).all(1)).astype(U64) for s in SIZES}

    def mark(self, offset, opaque):
        """Eight bytes become an mbarrier, which no load or store may touch, or memory again."""
        for s in SIZES:
            self.bad[s][offset // s : max(offset // s + 1, (offset + 8) // s)] = 2 if opaque else 0

    def locate(self, w, q, a, space, size):
        """``(views, i)``: elements of ``size`` bytes at addresses ``a`` of the lanes ``q`` (None: all)."""
        if q is not None:
            # Any address of an active lane stands in for those of the others.
            a = np.where(q, a, a[q.argmax()])
        if space == "generic":
            space, a = self._resolve(a)
        if space == "local":
            return self._locate_local(w, a, size)
        o = self._global(a, size) if space == "global" else self._shared(w, a)
        i = np.minimum(o >> _SHIFT[size], self.memory.last[size]).view(np.int64)
        wrong = self.bad[size][i] | (o & U64(size - 1))
        if wrong.any():
            self._refuse(a, o, i, size, space)
        return self.memory, i

    def _refuse(self, a, o, i, size, space):
        state = self.bad[size][i]
        for test, words in ((o & U64(size - 1), "misaligned"), (state == 2, "ordinary access to an mbarrier"),
                            (state, "out of bounds")):
            lanes = np.flatnonzero(test)
            if len(lanes):
                raise PtxError(f"{words}: {space} address {int(a[lanes[0]]):#x}, {size} bytes, {len(lanes)} lanes from "
                               f"lane {lanes[0]}")

    def _resolve(self, a):
        top = a >> U64(40)
        names = {GBASE >> 40: "global", SHARED_BASE >> 40: "shared", LOCAL_BASE >> 40: "local"}
        space = names.get(int(top[0]))
        if space is None or (top != top[0]).any():
            wild = [int(x) for x in a if int(x) >> 40 not in names]
            raise PtxError(f"generic address {wild[0]:#x} is in no state space" if wild else
                           "lanes of one access are in different state spaces: not modelled")
        return space, a if space == "global" else a & U64((1 << 40) - 1)

    def _global(self, a, size):
        o = a - _GLOBAL
        for begin, length, at in self.far:
            there = (a >= U64(begin)) & (a + U64(size) <= U64(begin + length))
            o = np.where(there, a - U64(begin) + U64(at), o)
        return o

    def _shared(self, w, a):
        """Offsets in the arena of shared addresses, of the block's own window or those of the cluster."""
        a = a.astype(U64)
        window = a >> _WINDOW
        if not window.any():
            return np.minimum(a, self.shared_end) + w.cta.base
        ctas = w.cta.cluster.ctas
        if (window > len(ctas)).any():
            raise PtxError(f"shared address {int(a.max()):#x} is in no block of the cluster")
        for each in np.unique(window):
            if each and ctas[int(each) - 1].gone:
                raise PtxError(f"block {ctas[int(each) - 1].number} has exited, its shared memory is gone")
        bases = np.array([w.cta.base] + [cta.base for cta in ctas], U64)
        return np.minimum(a & U64(SHWIN - 1), self.shared_end) + bases[window.view(np.int64)]

    def _locate_local(self, w, a, size):
        a = a.astype(U64)
        if (a + U64(size) > U64(self.local_size)).any():
            raise PtxError(f"local address {int(a.max()):#x} is out of bounds")
        if (a & U64(size - 1)).any():
            raise PtxError("misaligned: local address")
        return w.local, (a + w.lane_base >> _SHIFT[size]).view(np.int64)

    def load(self, w, q, a, space, size, n, order):
        views, i = self.locate(w, q, a, space, size * n)
        if views is self.memory:
            if order:
                self._observe(w, q, i * size * n, order)
            elif self.races:
                self.races.read(w.clock_, w.slot, i, size * n)
        got = views.rows(size, n)[i]
        return got if n == 1 else np.ascontiguousarray(got.T)

    def store(self, w, q, a, space, size, values, order):
        n = len(values)
        views, i = self.locate(w, q, a, space, size * n)
        value = values[0] if n == 1 else np.stack(values, 1)
        if q is not None:
            i, value = i[q], value[q]
        if views is self.memory:
            if order:
                self._publish_at(w, i * size * n, order, True)
                self.events += 1
            elif self.races:
                self.races.write(w.clock_, w.slot, i, size * n, w.at, lambda: views.rows(size, n)[i] != value)
        views.rows(size, n)[i] = value

    def atomic(self, w, q, a, space, name, dtype, sources, order, wanted):
        size = np.dtype(dtype).itemsize
        views, i = self.locate(w, q, a, space, size)
        if views is not self.memory:
            raise PtxError("an atomic operation on local memory")
        memory = self.arena.view(dtype)
        out = np.zeros(32, dtype)
        if order[0] in ("acquire", "acq_rel") or wanted:
            self._observe(w, q, i * size, ("acquire" if order[0] == "acq_rel" else order[0], order[1]))
        before = memory[i]
        for lane in range(32) if q is None else np.flatnonzero(q):
            at = i[lane]
            old = memory[at]
            out[lane] = old
            b = [s[lane] for s in sources]
            memory[at] = {
                "add": lambda: old + b[0], "exch": lambda: b[0], "cas": lambda: b[1] if old == b[0] else old,
                "min": lambda: min(old, b[0]), "max": lambda: max(old, b[0]), "and": lambda: old & b[0],
                "or": lambda: old | b[0], "xor": lambda: old ^ b[0],
                "inc": lambda: dtype(0) if old >= b[0] else old + dtype(1),
                "dec": lambda: b[0] if old == 0 or old > b[0] else old - dtype(1)}[name]()
        self._publish_at(w, (i if q is None else i[q]) * size, order, False)
        if (before != memory[i]).any():
            self.events += 1
        return out

    # What orders accesses.

    def _observe(self, w, q, offsets, order):
        w.polled = True
        if not self.races:
            return
        for offset in set((offsets if q is None else offsets[q]).tolist()):
            published = self.published.get(offset)
            for clock in published.visible(w.cta, order[1]) if published else ():
                if order[0] in ("acquire", "acq_rel", "sc"):
                    np.maximum(w.clock_, clock, out=w.clock_)
                else:
                    w.seen = clock if w.seen is None else np.maximum(w.seen, clock)

    def _publish_at(self, w, offsets, order, replace):
        if not self.races:
            return
        if order[0] in ("release", "acq_rel"):
            self.fence_clocks(w, order[1])
        for offset in set(offsets.tolist()):
            published = self.published.setdefault(offset, Published())
            if replace:
                published = self.published[offset] = Published()
            for scope, clock in w.fenced.items():
                narrower = min(scope, order[1] or "gpu", key=("cta", "cluster", "gpu", "sys").index)
                published.add(clock, w.cta, narrower)

    def fence_clocks(self, w, scope):
        """What came before is published by later relaxed stores; the warp's own time moves on."""
        for each in ("cta", "cluster", "gpu", "sys"):
            w.fenced[each] = w.clock_.copy()
            if each == scope:
                break
        w.clock_[:2, w.slot] += 1

    def fence(self, w, order, scope):
        if not self.races:
            return
        if w.seen is not None and order != "release":
            np.maximum(w.clock_, w.seen, out=w.clock_)
        self.fence_clocks(w, scope)

    def proxy_fence(self, w):
        if self.races:
            w.clock_[2] = np.maximum(w.clock_[2], w.clock_[0])

    # Addresses.

    def map_address(self, w, q, a, rank, space):
        size = len(w.cta.cluster.ctas)
        wrong = rank >= size if q is None else (rank >= size) & q
        if wrong.any():
            raise PtxError(f"block {int(rank.max())} of a cluster of {size}")
        generic = space == "generic"
        a = a.astype(U64)
        if generic:
            a = a - U64(SHARED_BASE)
        a = (a & U64(SHWIN - 1)) + (rank.astype(U64) + U64(1)) * U64(SHWIN)
        return a + U64(SHARED_BASE) if generic else a

    def rank_of(self, w, q, a, space):
        a = a.astype(U64)
        window = (a - U64(SHARED_BASE) if space == "generic" else a) >> _WINDOW
        return np.where(window == 0, U32(w.cta.rank), window.astype(U32) - U32(1))

    def in_space(self, w, a, space):
        base = {"global": GBASE, "const": GBASE, "local": LOCAL_BASE}.get(space, SHARED_BASE)
        inside = a >> U64(40) == U64(base >> 40)
        return inside & (a - U64(base) < U64(SHWIN)) if space in ("shared", "shared::cta") else inside

    def convert_address(self, w, q, a, space, to):
        base = U64({"shared": SHARED_BASE, "local": LOCAL_BASE}.get(space, 0))
        return a - base if to else a + base
