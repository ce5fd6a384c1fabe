"""PTX instructions between registers."""

import numpy as np

from .ptx_types import DT, GBASE, SHWIN, U8, U16, U32, U64, UOF, bf2f, f2bf

_UNPACK = {
    "bf16": (bf2f, f2bf),
    "bf16x2": (lambda bits: bf2f(bits.view(U16)), f2bf),
    "f16x2": (lambda bits: bits.view(np.float16), lambda values: values.astype(np.float16)),
    "f32x2": (lambda bits: bits.view(np.float32), lambda values: values),
}
"""What numpy has no type for: from bits to values, and back from float32."""


class Arithmetic:
    def _alu(self, O, ty, fn, dts=None):
        """``fn`` of the operands in PTX type ``ty``; of their values in float64 where numpy has no such type."""
        if ty in _UNPACK:
            return self._floats(O, ty, fn)
        a = [self.get(s, dts[i] if dts else DT[ty]) for i, s in enumerate(O[1:])]
        d = self.put(O[0])
        return lambda g, m: d(g, m, fn(*[q(g) for q in a]))

    def _floats(self, O, ty, fn):
        a, d = [self.get(s, DT[ty]) for s in O[1:]], self.put(O[0])
        unpack, pack = _UNPACK[ty]

        def f(g, m):
            values = [unpack(np.ascontiguousarray(np.broadcast_to(q(g), m.shape))).astype(np.float64) for q in a]
            d(g, m, np.ascontiguousarray(pack(fn(*values).astype(np.float32))).view(DT[ty]))

        return f

    def _mixed(self, O, ty, fn):
        """float32 from operands of type ``ty`` but the last, which is float32."""
        to, last = self.put(O[0]), self.get(O[-1], np.float32)
        others, widen = [self.get(s, DT[ty]) for s in O[1:-1]], bf2f if ty == "bf16" else np.float32

        def f(g, m):
            values = [np.asarray(widen(q(g)), np.float64) for q in others]
            to(g, m, np.asarray(fn(*values, last(g))).astype(np.float32))

        return f

    def i_mov(self, x, P, O, ty):
        if O[0].startswith("{"):
            ds = [self.put(s.strip()) for s in O[0][1:-1].split(",")]
            src = self.get(O[1], DT[ty])
            w = np.dtype(DT[ty]).itemsize // len(ds)
            return lambda g, m: [
                d(g, m, np.broadcast_to(src(g), m.shape).copy().view(UOF[w]).reshape(-1, len(ds))[:, i].copy())
                for i, d in enumerate(ds)
            ]
        if O[1].startswith("{"):
            w = np.dtype(DT[ty]).itemsize
            names = [s.strip() for s in O[1][1:-1].split(",")]
            n = len(names)
            ss = [self.get(s, UOF[w // n]) for s in names]
            d = self.put(O[0])
            return lambda g, m: d(
                g, m, np.stack([np.broadcast_to(s(g), m.shape) for s in ss], 1).copy().view(UOF[w])[:, 0]
            )
        s = self.get(O[1], DT[ty])
        d = self.put(O[0])
        return lambda g, m: d(g, m, np.broadcast_to(s(g), m.shape))

    def i_add(self, x, P, O, ty):
        return (self._mixed if "f32" in P[:-1] else self._alu)(O, ty, np.add)

    def i_sub(self, x, P, O, ty):
        return (self._mixed if "f32" in P[:-1] else self._alu)(O, ty, np.subtract)

    def i_mul(self, x, P, O, ty):
        if "wide" in P:
            return self._wide(O, ty, lambda a, b: a * b)
        if "hi" in P:
            n = 8 * np.dtype(DT[ty]).itemsize
            return self._alu(O, ty, lambda a, b: ((a.astype(object) * b) >> n).astype(DT[ty]))
        return self._alu(O, ty, np.multiply)

    def _wide(self, O, ty, fn):
        w = {"s32": np.int64, "u32": U64, "s16": np.int32, "u16": U32}[ty]
        a = [self.get(s, DT[ty]) for s in O[1:3]] + [self.get(s, w) for s in O[3:]]
        d = self.put(O[0])
        return lambda g, m: d(g, m, np.asarray(fn(*[np.asarray(q(g)).astype(w) for q in a])))

    def i_mad(self, x, P, O, ty):
        if "wide" in P:
            return self._wide(O, ty, lambda a, b, c: a * b + c)
        return self._alu(O, ty, lambda a, b, c: a * b + c)

    def i_fma(self, x, P, O, ty):
        if ty in _UNPACK or "f32" in P[:-1]:
            return (self._mixed if "f32" in P[:-1] else self._floats)(O, ty, lambda a, b, c: a * b + c)
        rm = "rm" in P

        def fn(a, b, c):
            d = np.asarray(np.asarray(a).astype(np.float64) * b + c)
            r = d.astype(DT[ty])
            return np.where(r > d, np.nextafter(r, DT[ty](-np.inf)), r).astype(DT[ty]) if rm else r

        return self._alu(O, ty, fn)

    def i_div(self, x, P, O, ty):
        return self._alu(
            O, ty, np.divide if ty[0] == "f" else (lambda a, b: (np.trunc(a.astype(np.float64) / b)).astype(DT[ty]))
        )

    def i_rem(self, x, P, O, ty):
        return self._alu(O, ty, lambda a, b: np.fmod(a, b))

    def i_neg(self, x, P, O, ty):
        return self._alu(O, ty, (lambda a: DT[ty](0) - a) if ty[0] == "s" else np.negative)

    def i_abs(self, x, P, O, ty):
        return self._alu(O, ty, np.abs)

    def i_min(self, x, P, O, ty):
        return self._alu(O, ty, np.fmin if "f" in ty else np.minimum)

    def i_max(self, x, P, O, ty):
        return self._alu(O, ty, np.fmax if "f" in ty else np.maximum)

    def i_and(self, x, P, O, ty):
        return self._alu(O, ty, np.bitwise_and)

    def i_or(self, x, P, O, ty):
        return self._alu(O, ty, np.bitwise_or)

    def i_xor(self, x, P, O, ty):
        return self._alu(O, ty, np.bitwise_xor)

    def i_not(self, x, P, O, ty):
        return self._alu(O, ty, np.invert)

    def _sh(self, O, ty, fn):
        n = 8 * np.dtype(DT[ty]).itemsize

        def f(a, s):
            s = np.asarray(s).astype(np.int64)
            return fn(np.asarray(a), np.minimum(s, n - 1).astype(DT[ty]), s >= n)

        return self._alu(O, ty, f, dts=[DT[ty], U32])

    def i_shl(self, x, P, O, ty):
        return self._sh(O, ty, lambda a, s, big: np.where(big, 0, a << s).astype(DT[ty]))

    def i_shr(self, x, P, O, ty):
        return self._sh(
            O, ty, lambda a, s, big: (a >> s) if ty[0] == "s" else np.where(big, 0, a >> s).astype(DT[ty])
        )

    def i_bfe(self, x, P, O, ty):
        n = 8 * np.dtype(DT[ty]).itemsize
        U = UOF[n // 8]

        def f(a, p, l):
            p, l = int(np.ravel(p)[0]), int(np.ravel(l)[0])
            v = (a.view(U) >> U(p)) & U((1 << l) - 1)
            return ((v ^ U(1 << (l - 1))) - U(1 << (l - 1))).view(DT[ty]) if ty[0] == "s" and l else v

        return self._alu(O, ty, f, dts=[DT[ty], U32, U32])

    def i_lop3(self, x, P, O, ty):
        lut = int(O[4], 0)
        a = [self.get(s, U32) for s in O[1:4]]
        d = self.put(O[0])

        def f(g, m):
            A, B, C = (np.broadcast_to(q(g), m.shape) for q in a)
            r = np.zeros(m.shape, U32)
            for i in range(8):
                if lut >> i & 1:
                    r |= (A if i & 4 else ~A) & (B if i & 2 else ~B) & (C if i & 1 else ~C)
            d(g, m, r)

        return f

    def i_prmt(self, x, P, O, ty):
        def f(a, b, s):
            v = (
                np.stack([np.broadcast_to(np.asarray(q), np.shape(a) or (1,)) for q in (a, b)], -1)
                .astype(U32)
                .copy()
                .view(U8)
                .reshape(-1, 8)
            )
            s = np.broadcast_to(s, v.shape[:1])
            r = np.zeros(v.shape[0], U32)
            for i in range(4):
                k = (s >> U32(4 * i)) & U32(15)
                by = v[np.arange(len(v)), (k & U32(7)).astype(int)]
                by = np.where(k & U32(8), np.where(by & 0x80, 255, 0), by)
                r |= by.astype(U32) << U32(8 * i)
            return r

        return self._alu(O, "b32", f)

    def i_selp(self, x, P, O, ty):
        a, b, p, d = self.get(O[1], DT[ty]), self.get(O[2], DT[ty]), self.get(O[3], np.bool_), self.put(O[0])
        return lambda g, m: d(g, m, np.where(p(g), a(g), b(g)).astype(DT[ty]))

    def i_setp(self, x, P, O, ty):
        c = P[1]
        nan_true = c.endswith("u") and c[:-1] in ("lt", "le", "gt", "ge", "eq", "ne", "equ"[:-1])
        base = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(c, c[:2])
        fn = {
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
            "eq": np.equal,
            "ne": np.not_equal,
        }.get(base)
        dt = DT[ty]
        a, b = self.get(O[1], dt), self.get(O[2], dt)
        comb = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.get(P[2])
        q = self.get(O[3].lstrip("!"), np.bool_) if comb else None
        qn = comb and O[3].startswith("!")
        ds = [self.put(s) for s in O[0].split("|")]

        def compare(A, B):
            if "f" not in ty:
                return fn(A, B)
            nan = np.isnan(A) | np.isnan(B)
            return {"nan": nan, "num": ~nan}[c] if c in ("nan", "num") else np.where(nan, nan_true, fn(A, B))

        def f(g, m):
            A, B = (np.ascontiguousarray(np.broadcast_to(v(g), m.shape)) for v in (a, b))
            if ty in _UNPACK:
                A, B = (_UNPACK[ty][0](v).reshape(m.size, -1) for v in (A, B))
            results = compare(A, B)
            # Packed pairs give a predicate for each half; others give theirs and its opposite.
            results = results.T if results.ndim == 2 else results[None]
            results = [*results, ~results[0]] if len(results) == 1 else results
            Q = (q(g) ^ bool(qn)) if comb else None
            for d, r in zip(ds, results):
                d(g, m, comb(r, Q) if comb else r)

        return f

    def i_cvta(self, x, P, O, ty):
        s, d = self.get(O[1], U64), self.put(O[0])
        if "shared" not in P:
            return lambda g, m: d(g, m, np.broadcast_to(s(g), m.shape))
        win = lambda g: (GBASE + self.shbase + self.cta_l[g] * SHWIN).astype(U64)
        if "to" in P:
            return lambda g, m: d(g, m, s(g) - win(g))
        return lambda g, m: d(g, m, s(g) + win(g))

    def i_cvt(self, x, P, O, ty):
        src, dst = P[-1], P[-2]
        d = self.put(O[0])
        if dst in ("bf16x2", "f16x2"):
            a, b = self.get(O[1], np.float32), self.get(O[2], np.float32)
            h = f2bf if dst == "bf16x2" else (lambda v: v.astype(np.float16).view(U16))
            relu = "relu" in P

            def f(g, m):
                A, B = (np.broadcast_to(np.asarray(q(g), np.float32), m.shape) for q in (a, b))
                if relu:
                    A, B = np.fmax(A, 0), np.fmax(B, 0)
                d(g, m, (h(A).astype(U32) << U32(16)) | h(B).astype(U32))

            return f
        a = self.get(O[1], DT[src])
        sat = "sat" in P

        def f(g, m):
            v = np.broadcast_to(np.asarray(a(g)), m.shape)
            if src == "bf16":
                v = bf2f(v)
            if dst == "bf16":
                r = f2bf(v.astype(np.float32))
            elif np.dtype(DT[dst]).kind in "iu" and np.dtype(v.dtype).kind == "f":
                w = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[
                    next(p for p in P if p in ("rni", "rzi", "rmi", "rpi"))
                ](v.astype(np.float64))
                ii = np.iinfo(DT[dst])
                r = np.clip(np.nan_to_num(w), ii.min, ii.max).astype(DT[dst])
            elif np.dtype(DT[dst]).kind == "f":
                w = v
                for p, q in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
                    if p in P:
                        w = q(w)
                r = w.astype(DT[dst])
                if sat:
                    r = np.clip(np.nan_to_num(r), 0, 1).astype(DT[dst])
            else:
                r = v.astype(DT[dst])
            d(g, m, r)

        return f

    def _un(self, O, ty, fn):
        return self._alu(O, ty, lambda a: np.asarray(fn(np.asarray(a).astype(np.float64))).astype(DT[ty]))

    def i_ex2(self, x, P, O, ty):
        return self._un(O, ty, np.exp2)

    def i_lg2(self, x, P, O, ty):
        return self._un(O, ty, np.log2)

    def i_rcp(self, x, P, O, ty):
        return self._un(O, ty, np.reciprocal)

    def i_sqrt(self, x, P, O, ty):
        return self._un(O, ty, np.sqrt)

    def i_rsqrt(self, x, P, O, ty):
        return self._un(O, ty, lambda v: 1 / np.sqrt(v))

    def i_tanh(self, x, P, O, ty):
        return self._un(O, ty, np.tanh)

    def i_copysign(self, x, P, O, ty):
        return self._alu(O, ty, lambda a, b: np.copysign(b, a))
