"""Operands, loads, stores, atomics and asynchronous copies of the PTX interpreter."""

import re
from typing import NamedTuple

import numpy as np

from .ptx_types import DT, GBASE, SHWIN, U32, U64, UOF, PtxError

FAR = 1 << 44
"""Multiples of it are the addresses where :class:`Sparse` arguments begin."""


class Sparse(NamedTuple):
    """An argument of which only some parts are in memory; any other element is a wild address."""

    parts: list
    """``(index of the first element, contiguous numpy array)`` of each part."""


class Memory:
    def get(self, op, dt):
        """-> function(g) returning array (or scalar) of dtype dt"""
        R, SR = self.R, self.SR
        size = np.dtype(dt).itemsize
        if op in R:
            r = R[op]
            if dt == np.bool_ or r.dtype == np.bool_:
                return lambda g: r[g]
            if r.dtype.itemsize == size:
                v = r.view(dt)
                return lambda g: v[g]
            u = UOF[size]
            return lambda g: r[g].astype(u).view(dt)
        if op in SR:
            r = SR[op]
            return lambda g: r[g].astype(UOF[size]).view(dt)
        if re.match(r"0[fF][0-9a-fA-F]{8}$", op):
            v = np.array([int(op[2:], 16)], U32).view(np.float32)[0]
        elif re.match(r"0[dD][0-9a-fA-F]{16}$", op):
            v = np.array([int(op[2:], 16)], U64).view(np.float64)[0]
        elif op in ("true", "false"):
            v = op == "true"
        elif op in self.sym:
            v = self._symaddr(op)
        elif op == "%clock64" or op == "%globaltimer":
            return lambda g: np.full(g.stop - g.start, self.issued, dt)
        else:
            try:
                v = int(op.rstrip("U"), 0)
            except ValueError:
                raise PtxError("operand " + op) from None
        if isinstance(v, (int, np.integer)) and not isinstance(v, bool):
            if np.dtype(dt).kind == "f" and not isinstance(v, float):
                a = np.array([v & (1 << 8 * size) - 1], UOF[size]).view(dt)[0]
            elif dt == np.bool_:
                a = bool(v)
            else:
                a = np.array([v & ((1 << 8 * size) - 1)], UOF[size]).view(dt)[0]
        elif isinstance(v, np.floating) and np.dtype(dt).kind != "f":
            a = (
                np.asarray(v).reshape(1).view(UOF[v.itemsize]).astype(UOF[size]).view(dt)[0]
            )  # bits of a float literal
        else:
            a = dt(v)
        return lambda g: a

    def _symaddr(self, s):
        v = self.sym[s]
        return self.static if isinstance(v, tuple) else v

    def put(self, op):
        if op == "_":
            return lambda g, m, v: None
        r = self.R[op]

        def f(g, m, v):
            v = np.asarray(v)
            if v.dtype != r.dtype:
                if r.dtype == np.bool_:
                    v = v.astype(np.bool_)
                elif v.dtype.itemsize == r.dtype.itemsize:
                    v = v.view(r.dtype)
                else:
                    if v.dtype.kind == "i":
                        v = v.astype(np.dtype(f"i{r.dtype.itemsize}")).view(r.dtype)
                    else:
                        v = v.view(UOF[v.dtype.itemsize]).astype(r.dtype)
            np.copyto(r[g], v, where=m)

        return f

    def addr(self, op):
        m = re.match(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]$", op)
        base, off = m[1], int(m[2], 0) if m[2] else 0
        if base in self.R:
            r = self.R[base]
            return lambda g: (r[g].astype(np.int64) + off)
        a = self._symaddr(base) + off
        return lambda g: np.full(g.stop - g.start, a, np.int64)

    def _off(self, space, a, g, size, m):
        if space == "shared" or space == "shared::cta":
            if (m & ((a < 0) | (a + size > self.shsize))).any():
                raise PtxError(
                    f"shared address out of range: {a[m].min():#x}..{a[m].max():#x}, size {self.shsize:#x}"
                )
            o = a + self.shbase + self.cta_l[g] * SHWIN
        else:
            o = a - GBASE
            for start, nbytes, at in self.far:
                o = np.where((a >= start) & (a + size <= start + nbytes), a - start + at, o)
        o = np.where(m, o, 256)
        bad = m & ((o < 0) | (o + size > self.arena.size))
        if bad.any():
            raise PtxError(f"wild address {a[bad][0]:#x}")
        if (o[m] % size).any():
            raise PtxError("misaligned access")
        ok = self.valid[o] & self.valid[np.minimum(o + size - 1, self.valid.size - 1)]
        if (m & ~ok).any():
            raise PtxError(f"out-of-bounds access by {int((m & ~ok).sum())} lanes, e.g. offset {int(o[m & ~ok][0])}")
        return o

    def _space(self, P):
        for s in P[1:]:
            if s in ("param", "global", "local", "const"):
                return s
            if s.startswith("shared"):
                return "shared"
        return "generic"

    def _vec(self, op):
        return [s.strip() for s in op[1:-1].split(",")] if op.startswith("{") else [op]

    def i_ld(self, x, P, O, ty):
        sp, dt = self._space(P), DT[ty]
        sz = np.dtype(dt).itemsize
        ds = [self.put(s) for s in self._vec(O[0])]
        n = len(ds)
        if sp == "param":
            m_ = re.match(r"\[\s*(\w+)\s*(?:\+\s*(\d+))?\s*\]", O[1])
            o = self.params[m_[1]][0] + int(m_[2] or 0)
            vals = [np.frombuffer(self.pbytes[o + i * sz : o + (i + 1) * sz].tobytes(), dt)[0] for i in range(n)]
            return lambda g, m: [d(g, m, np.full(m.shape, v, dt)) for d, v in zip(ds, vals)]
        if sp == "local":
            raise PtxError("local memory not modelled")
        a = self.addr(O[1])

        def f(g, m):
            o = self._off(sp, a(g), g, sz * n, m)
            v = self.arena.view(UOF[sz]) if self.arena.size % sz == 0 else None
            for i, d in enumerate(ds):
                d(g, m, v[(o + i * sz) // sz].view(dt))

        return f

    def i_st(self, x, P, O, ty):
        sp, dt = self._space(P), DT[ty]
        sz = np.dtype(dt).itemsize
        ss = [self.get(s, UOF[sz]) for s in self._vec(O[1])]
        a = self.addr(O[0])
        n = len(ss)
        if sp == "local":
            raise PtxError("local memory not modelled")

        def f(g, m):
            o = self._off(sp, a(g), g, sz * n, m)
            v = self.arena.view(UOF[sz])
            for i, s in enumerate(ss):
                v[((o + i * sz) // sz)[m]] = np.broadcast_to(s(g), m.shape)[m]

        return f

    def _atomic(self, P, addr_op, srcs, dst, ty):
        opn = next(p for p in P[1:] if p in ("add", "cas", "exch", "min", "max", "and", "or", "xor"))
        dt = DT[ty]
        sz = np.dtype(dt).itemsize
        sp = self._space(P)
        a = self.addr(addr_op)
        ss = [self.get(s, dt) for s in srcs]
        d = self.put(dst) if dst else None

        def f(g, m):
            o = self._off(sp, a(g), g, sz, m)
            v = self.arena.view(UOF[sz]).view(dt)
            out = np.zeros(m.shape, dt)
            S = [np.broadcast_to(s(g), m.shape) for s in ss]
            for l in np.flatnonzero(m):
                i = o[l] // sz
                old = v[i]
                out[l] = old
                v[i] = {
                    "add": lambda: old + S[0][l],
                    "exch": lambda: S[0][l],
                    "cas": lambda: S[1][l] if old == S[0][l] else old,
                    "min": lambda: min(old, S[0][l]),
                    "max": lambda: max(old, S[0][l]),
                    "and": lambda: old & S[0][l],
                    "or": lambda: old | S[0][l],
                    "xor": lambda: old ^ S[0][l],
                }[opn]()
            if d:
                d(g, m, out)

        return f

    def i_atom(self, x, P, O, ty):
        return self._atomic(P, O[1], O[2:], O[0], ty)

    def i_red(self, x, P, O, ty):
        return self._atomic(P, O[0], O[1:], None, ty)

    def i_fence(self, x, P, O, ty):
        return lambda g, m: None

    i_membar = i_griddepcontrol = i_nanosleep = i_prefetch = i_setmaxnreg = i_discard = i_fence

    # ---- async copies: performed only when waited for, so a missing wait shows
    def i_cp(self, x, P, O, ty):
        if "bulk" in P:
            raise PtxError("TMA not modelled")
        if P[2] == "commit_group":
            return lambda g, m: self._cp_mark(g, m)
        if P[2] in ("wait_group", "wait_all"):
            n = int(O[0], 0) if P[2] == "wait_group" else 0
            return lambda g, m: self._cp_wait(g, m, n)
        sz = int(O[2], 0)
        da, sa = self.addr(O[0]), self.addr(O[1])
        ss = self.get(O[3], U32) if len(O) > 3 else None

        def f(g, m):
            n = np.broadcast_to(ss(g), m.shape).astype(int) if ss else np.full(m.shape, sz)
            do = self._off("shared", da(g), g, sz, m)
            so = self._off("global", sa(g), g, sz, m & (n > 0))
            for l in np.flatnonzero(m):
                self.pend.append([g.start + l, None, int(do[l]), int(so[l]), int(n[l]), sz])

        return f

    def _cp_mark(self, g, m):
        if not hasattr(self, "cpg") or len(self.cpg) != self.N:
            self.cpg = np.zeros(self.N, int)
        for e in self.pend:
            if e[1] is None and g.start <= e[0] < g.stop and m[e[0] - g.start]:
                e[1] = self.cpg[e[0]]
        self.cpg[g][m] += 1

    def _cp_wait(self, g, m, n):
        if not hasattr(self, "cpg") or len(self.cpg) != self.N:
            self.cpg = np.zeros(self.N, int)
        keep = []
        for e in self.pend:
            l = e[0]
            if g.start <= l < g.stop and m[l - g.start] and (n == 0 or (e[1] is not None and e[1] < self.cpg[l] - n)):
                self.arena[e[2] : e[2] + e[5]] = 0
                self.arena[e[2] : e[2] + e[4]] = self.arena[e[3] : e[3] + e[4]]
            else:
                keep.append(e)
        self.pend = keep
