"""A PTX interpreter in numpy: runs on the CPU what Triton compiled for a GPU.

The lanes of a group, a program or a warp, run together, lowest program counter first; groups take turns; barriers are
real; shared memory starts as NaN; every access is checked for bounds and alignment. It is blind to weak memory
ordering, spills, limits of a launch, and time.
"""

import re
import struct

import numpy as np

from .ptx_arithmetic import Arithmetic
from .ptx_memory import FAR, Memory, Sparse
from .ptx_types import DT, GBASE, SHWIN, U8, U32, UOF, PtxError, split_ops
from .ptx_warp import WarpCollectives


class Instruction:
    __slots__ = ("pred", "neg", "op", "parts", "ops", "text", "fn")


class Kernel(Arithmetic, Memory, WarpCollectives):
    """One kernel of a PTX module, the first if no ``name`` is given."""

    def __init__(self, ptx, name=None):
        ptx = re.sub(r"//[^\n]*", "", ptx)
        ptx = re.sub(r"/\*.*?\*/", "", ptx, flags=re.S)
        heads = list(re.finditer(r"\.entry\s+(\w+)\s*\((.*?)\)([^{;]*)\{", ptx, re.S))
        h = next(m for m in heads if name is None or m[1] == name)
        self.name, self.attrs = h[1], h[3]
        self.params, off = {}, 0
        for p in filter(None, (x.strip() for x in h[2].split(","))):
            al = re.search(r"\.align\s+(\d+)\s+\.b8", p)
            ty = re.search(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)", p)[1]
            nm = re.search(r"(\w+)(?:\[(\d+)\])?$", p)
            size = np.dtype(DT[ty]).itemsize * int(nm[2] or 1)
            a = int(al[1]) if al else np.dtype(DT[ty]).itemsize
            off = (off + a - 1) // a * a
            self.params[nm[1]] = (off, size, ty)
            off += size
        self.psize = off
        d, i = 1, h.end()
        while d:
            d += {"{": 1, "}": -1}.get(ptx[i], 0)
            i += 1
        body = ptx[h.end() : i - 1]
        self.sym, so = {}, 0
        for m in re.finditer(
            r"(\.extern\s+)?\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\s*\[(\d*)\]", ptx[: heads[0].start()] + body
        ):
            al = int(m[2])
            if m[1]:
                self.sym[m[3]] = ("dyn", al)
            else:
                so = (so + al - 1) // al * al
                self.sym[m[3]] = so
                so += int(m[4])
        self.static = (so + 127) // 128 * 128
        self.local = sum(int(m[1]) for m in re.finditer(r"\.local\s+\.align\s+\d+\s+\.b8\s+\w+\[(\d+)\]", body))
        # registers
        self.regs = {}
        for m in re.finditer(r"\.reg\s+\.(\w+)\s+([^;]+);", body):
            for n in m[2].split(","):
                n = n.strip()
                r = re.match(r"(%?[\w$]+)<(\d+)>", n)
                for nm in ([f"{r[1]}{j}" for j in range(int(r[2]))] if r else [n]):
                    self.regs[nm] = m[1]
        self.ins, self.labels = [], {}
        body = re.sub(
            r"^[{\s]*\.(reg|local|shared|extern|loc|pragma|section|file)\b[^;\n]*(;|(?=\n))",
            lambda m: "{" if "{" in m[0] else "",
            body,
            flags=re.M,
        )
        # free-standing scope braces (inline asm): lines that are only a brace or begin an asm scope
        for st in re.split(r";", body):
            st = st.strip()
            while True:
                m = re.match(r"([{}])\s*(?![^;]*=)", st) if re.match(r"[{}]\s", st + " ") else None
                l = re.match(r"([$%\w]+)\s*:", st)
                if m:
                    st = st[1:].strip()
                elif l:
                    self.labels[l[1]] = len(self.ins)
                    st = st[l.end() :].strip()
                else:
                    break
            if not st:
                continue
            m = re.match(r"(?:@(!?)(%?[\w]+)\s+)?([a-z][\w.:]*)\s*(.*)$", st, re.S)
            if not m:
                raise PtxError("cannot parse: " + st)
            x = Instruction()
            x.neg, x.pred, x.op, x.text = m[1] == "!", m[2], m[3], " ".join(st.split())
            x.parts = m[3].split(".")
            x.ops = split_ops(m[4].replace("\n", " "))
            x.fn = None
            self.ins.append(x)

    def launch(self, grid, block, args, smem=0, coop=False, sched="cta", seed=0, max_issue=5_000_000):
        """Run the kernel; returns how many instructions were issued.

        ``args`` are numpy arrays or :class:`Sparse` ones (written back), ints, floats, or None for a null pointer.
        ``coop``: all programs at once, in turns of random length if ``seed``; else one after the other.
        ``sched="warp"`` also lets the warps of a program run apart.
        """
        bufs, off, self.far = [], 512, []
        for index, a in enumerate(args):
            parts = a.parts if isinstance(a, Sparse) else [(0, a)] if isinstance(a, np.ndarray) else []
            for first, part in parts:
                assert part.flags.c_contiguous
                bufs.append((part, off))
                if isinstance(a, Sparse):
                    self.far.append(((index + 1) * FAR + first * part.itemsize, part.nbytes, off))
                off += (part.nbytes + 255) // 256 * 256 + 256

        def addr_of(a):
            return GBASE + next(o for b, o in bufs if b is a)

        raw = bytearray(self.psize)
        args = list(args) + [None] * (len(self.params) - len(args))
        for index, ((o, size, _), a) in enumerate(zip(self.params.values(), args)):
            if isinstance(a, np.ndarray):
                v = struct.pack("<Q", addr_of(a))
            elif isinstance(a, Sparse):
                v = struct.pack("<Q", (index + 1) * FAR)
            elif a is None:
                v = b"\0" * size
            elif isinstance(a, float):
                v = struct.pack("<f", a)
            else:
                v = int(a).to_bytes(size, "little", signed=a < 0)
            raw[o : o + len(v)] = v
        self.pbytes = np.frombuffer(bytes(raw), U8)
        g = tuple(grid) + (1,) * (3 - len(grid))
        b = tuple(block) + (1,) * (3 - len(block))
        nt, ncta = int(np.prod(b)), int(np.prod(g))
        self.g, self.b, self.nt = g, b, nt
        step = ncta if coop else 1
        self.issued = 0
        shbase = (off + 255) // 256 * 256
        for c0 in range(0, ncta, step):
            arena = np.full(shbase + step * SHWIN, 0, U8)
            valid = np.zeros(arena.size, np.bool_)
            for a, o in bufs:
                arena[o : o + a.nbytes] = np.ascontiguousarray(a).reshape(-1).view(U8)
                valid[o : o + a.nbytes] = True
            self.shsize = self.static + smem
            for c in range(step):
                o = shbase + c * SHWIN
                arena[o : o + self.shsize] = 0xFF
                valid[o : o + self.shsize] = True
            self.arena, self.valid, self.shbase = arena, valid, shbase
            self._run(c0, step, sched, seed, max_issue)
            for a, o in bufs:
                a.reshape(-1).view(U8)[:] = arena[o : o + a.nbytes]
        return self.issued

    def _run(self, c0, ncta, sched, seed, max_issue):
        nt = self.nt
        N = ncta * nt
        self.N, self.c0 = N, c0
        with np.errstate(all="ignore"):
            self.R = {
                n: np.zeros(N, np.bool_ if t == "pred" else UOF[np.dtype(DT[t]).itemsize])
                for n, t in self.regs.items()
            }
            lane = np.arange(N)
            self.cta_l = lane // nt
            t = lane % nt
            c = c0 + self.cta_l
            bx, by, _ = self.b
            gx, gy, _ = self.g
            u = lambda x: np.asarray(x).astype(U32)
            self.SR = {
                "%tid.x": u(t % bx),
                "%tid.y": u(t // bx % by),
                "%tid.z": u(t // bx // by),
                "%laneid": u(t % 32),
                "%warpid": u(t // 32),
                "%ctaid.x": u(c % gx),
                "%ctaid.y": u(c // gx % gy),
                "%ctaid.z": u(c // gx // gy),
            }
            for n, v in zip(("%ntid", "%nctaid"), (self.b, self.g)):
                for ax, s in zip("xyz", v):
                    self.SR[f"{n}.{ax}"] = np.full(N, s, U32)
            self.pc = np.zeros(N, np.int64)
            self.blk = np.zeros(N, np.int8)  # 0 running, 1 at bar.sync, 9 exited
            self.pend = []  # cp.async not yet waited for
            for x in self.ins:
                x.fn = None
            gs = 32 if sched == "warp" else nt
            groups = [slice(i, min(i + gs, (i // nt + 1) * nt)) for i in range(0, N, gs)]
            rng = np.random.default_rng(seed)
            while True:
                live = [g for g in groups if (self.blk[g] == 0).any()]
                if not live:
                    if (self.blk == 9).all():
                        return
                    waiting, gone = (self.blk == 1).sum(), (self.blk == 9).sum()
                    raise PtxError(f"deadlock: {waiting} lanes at bar.sync, {gone} exited")
                g = live[rng.integers(len(live))] if seed else live[0]
                for g in ([g] if seed else live):
                    burst = int(rng.integers(1, 400)) if seed else 2000
                    for _ in range(burst):
                        act = self.blk[g] == 0
                        if not act.any():
                            break
                        p = self.pc[g]
                        cur = int(p[act].min())
                        m = act & (p == cur)
                        self.issued += 1
                        if self.issued > max_issue:
                            raise PtxError("too many instructions (livelock?)")
                        self._issue(cur, g, m)

    def _issue(self, cur, g, m):
        x = self.ins[cur]
        self.pc[g][m] = cur + 1
        if x.pred:
            p = self.R[x.pred][g]
            me = m & (~p if x.neg else p)
        else:
            me = m
        o = x.parts[0]
        if o == "bra":
            self.pc[g][me] = self.labels[x.ops[0]]
            return
        if o in ("ret", "exit"):
            self.blk[g][me] = 9
            self._release()
            return
        if o in ("bar", "barrier"):
            self.blk[g][me] = 1
            self._release()
            return
        if not me.any() and o not in ("mma", "ldmatrix", "stmatrix", "shfl"):
            return
        if x.fn is None:
            x.fn = self._compile(x)
        try:
            x.fn(g, me)
        except PtxError as e:
            raise PtxError(f"{e}\n  at [{cur}] {x.text}") from None

    def _release(self):
        for c in range(self.N // self.nt):
            s = slice(c * self.nt, (c + 1) * self.nt)
            b = self.blk[s]
            at = b == 1
            if at.any() and (at | (b == 9)).all():
                b[at] = 0

    def _compile(self, x):
        P, O = x.parts, x.ops
        o = P[0]
        ty = P[-1]
        f = getattr(self, "i_" + o, None)
        if f:
            return f(x, P, O, ty)
        raise PtxError("unknown instruction " + x.text)
