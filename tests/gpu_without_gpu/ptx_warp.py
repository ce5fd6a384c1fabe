"""PTX instructions that the lanes of a warp carry out together."""

import re

import numpy as np

from .ptx_types import DT, U16, U32, PtxError, bf2f


class WarpCollectives:
    def _full(self, m, what):
        w = m.reshape(-1, 32)
        if (w.any(1) != w.all(1)).any():
            raise PtxError(what + ": warp not converged")
        return np.flatnonzero(w.all(1))

    def i_ldmatrix(self, x, P, O, ty):
        n = {"x1": 1, "x2": 2, "x4": 4}[next(p for p in P if p in ("x1", "x2", "x4"))]
        tr = "trans" in P
        ds = [self.put(s) for s in self._vec(O[0])]
        a = self.addr(O[1])

        def f(g, m):
            W = self._full(m, "ldmatrix")
            ad = a(g).reshape(-1, 32)
            l = np.arange(32)
            use = np.zeros(m.shape, bool).reshape(-1, 32)
            use[W, : 8 * n] = True
            o = self._off("shared", ad.ravel(), g, 16, use.ravel()).reshape(-1, 32)
            v16 = self.arena.view(U16)
            for j, d in enumerate(ds):
                rows = o[:, 8 * j : 8 * j + 8] // 2  # [W,8]
                M = v16[rows[:, :, None] + np.arange(8)]  # [W,8,8]
                if tr:
                    M = M.transpose(0, 2, 1)
                lo, hi = M[:, l // 4, 2 * (l % 4)], M[:, l // 4, 2 * (l % 4) + 1]
                d(g, m, (lo.astype(U32) | hi.astype(U32) << U32(16)).ravel())

        return f

    def i_stmatrix(self, x, P, O, ty):
        n = {"x1": 1, "x2": 2, "x4": 4}[next(p for p in P if p in ("x1", "x2", "x4"))]
        tr = "trans" in P
        ss = [self.get(s, U32) for s in self._vec(O[1])]
        a = self.addr(O[0])

        def f(g, m):
            W = self._full(m, "stmatrix")
            ad = a(g).reshape(-1, 32)
            use = np.zeros(m.shape, bool).reshape(-1, 32)
            use[W, : 8 * n] = True
            o = self._off("shared", ad.ravel(), g, 16, use.ravel()).reshape(-1, 32)
            v16 = self.arena.view(U16)
            l = np.arange(32)
            for j, s in enumerate(ss):
                v = np.broadcast_to(s(g), m.shape).reshape(-1, 32)
                M = np.zeros((v.shape[0], 8, 8), U16)
                M[:, l // 4, 2 * (l % 4)] = v & U32(0xFFFF)
                M[:, l // 4, 2 * (l % 4) + 1] = v >> U32(16)
                if tr:
                    M = M.transpose(0, 2, 1)
                rows = o[:, 8 * j : 8 * j + 8] // 2
                v16[(rows[:, :, None] + np.arange(8))[W]] = M[W]

        return f

    def i_mma(self, x, P, O, ty):
        shp = next(p for p in P if re.match(r"m\d+n\d+k\d+$", p))
        i = P.index(shp)
        dty, aty, bty, cty = P[-4:]
        if (
            (shp, aty)
            not in (
                ("m16n8k16", "bf16"),
                ("m16n8k16", "f16"),
                ("m16n8k8", "tf32"),
                ("m16n8k8", "bf16"),
                ("m16n8k8", "f16"),
            )
            or dty != "f32"
            or P[i + 1 : i + 3] != ["row", "col"]
        ):
            raise PtxError("mma shape")
        K = int(shp.split("k")[1])
        ds = [self.put(s) for s in self._vec(O[0])]
        A, B, C = ([self.get(s, U32 if j < 2 else np.float32) for s in self._vec(O[1 + j])] for j in range(3))
        l = np.arange(32)
        gq, q = l // 4, l % 4

        def un(u):
            u = u.reshape(-1, 32)
            if aty == "bf16":
                return [bf2f(u & U32(0xFFFF)), (u & U32(0xFFFF0000)).view(np.float32)]
            if aty == "f16":
                return [
                    (u & U32(0xFFFF)).astype(U16).view(np.float16).astype(np.float32),
                    (u >> U32(16)).astype(U16).view(np.float16).astype(np.float32),
                ]
            return [(u & U32(0xFFFFE000)).view(np.float32)]

        def f(g, m):
            self._full(m, "mma")
            nw = m.size // 32
            bc = lambda s, t: np.ascontiguousarray(np.broadcast_to(s(g), m.shape)).view(t)
            Am, Bm = np.zeros((nw, 16, K), np.float32), np.zeros((nw, K, 8), np.float32)
            for r, s in enumerate(A):
                for h, v in enumerate(un(bc(s, U32))):
                    k = (2 * q + h + 8 * (r >> 1)) if aty != "tf32" else q + 4 * (r >> 1)
                    Am[:, gq + 8 * (r & 1), k] = v
            for r, s in enumerate(B):
                for h, v in enumerate(un(bc(s, U32))):
                    Bm[:, (2 * q + h + 8 * r) if aty != "tf32" else q + 4 * r, gq] = v
            D = np.matmul(Am, Bm)
            for r, (s, d) in enumerate(zip(C, ds)):
                c = bc(s, np.float32).reshape(nw, 32)
                d(g, m, (c + D[:, gq + 8 * (r >> 1), 2 * q + (r & 1)]).astype(np.float32).ravel())

        return f

    def i_shfl(self, x, P, O, ty):
        mode = next(p for p in P if p in ("bfly", "idx", "up", "down"))
        dd = O[0].split("|")
        d = self.put(dd[0])
        s, b, c = self.get(O[1], U32), self.get(O[2], U32), self.get(O[3], U32)

        def f(g, m):
            v = np.broadcast_to(s(g), m.shape).reshape(-1, 32)
            bb = np.broadcast_to(b(g), m.shape).reshape(-1, 32).astype(int)
            cc = np.broadcast_to(c(g), m.shape).reshape(-1, 32).astype(int)
            l = np.arange(32)[None]
            seg, clamp = (cc >> 8) & 31, cc & 31
            mx = (l & seg) | (clamp & ~seg)
            mn = l & seg
            j = {"bfly": l ^ bb, "idx": mn | (bb & ~seg), "up": l - bb, "down": l + bb}[mode]
            ok = (j >= mx) if mode == "up" else (j <= mx)
            d(g, m, np.take_along_axis(v, np.where(ok, j, l) & 31, 1).ravel())

        return f

    def i_redux(self, x, P, O, ty):
        combine = {"max": np.max, "min": np.min, "add": np.sum}[P[2]]
        from_register, to = self.get(O[1], DT[ty]), self.put(O[0])

        def f(g, m):
            self._full(m, "redux")
            values = np.broadcast_to(from_register(g), m.shape).reshape(-1, 32)
            to(g, m, np.repeat(combine(values, 1), 32).astype(DT[ty]))

        return f
