"""PTX instructions that the lanes of a warp carry out together."""

import numpy as np

from .ptx_types import U16, U32, PtxError, bf2f

_LANE = np.arange(32)
_GROUP, _QUAD = _LANE // 4, _LANE % 4


def _fragment_places(K, narrow):
    """Where the values of the registers of A, B and C lie in the flat matrices (16, K), (K, 8) and (16, 8)."""
    parts, registers = (1, K // 2) if narrow else (2, K // 4)

    def k(r, h):
        return _QUAD + 4 * r if narrow else 2 * _QUAD + h + 8 * r

    a = np.array([[(_GROUP + 8 * (r & 1)) * K + k(r >> 1, h) for h in range(parts)] for r in range(registers)])
    b = np.array([[k(r, h) * 8 + _GROUP for h in range(parts)] for r in range(registers // 2)])
    c = np.array([(_GROUP + 8 * (r >> 1)) * 8 + 2 * _QUAD + (r & 1) for r in range(4)])
    return a.transpose(0, 2, 1).ravel(), b.transpose(0, 2, 1).ravel(), c


class WarpCollectives:
    """Part of the machine."""

    def __init__(self):
        self.places = {}

    @staticmethod
    def _all(q, what):
        if q is not None and not q.all():
            raise PtxError(f"{what}: the warp has not converged, {int(q.sum())} lanes are here")

    @staticmethod
    def _members(w, q, members, what):
        """Lanes that carry the instruction out; all that its mask names must be here."""
        here = np.ones(32, bool) if q is None else q
        named = int(members[here.argmax()])
        if any((named >> lane & 1) and not here[lane] and w.alive[lane] for lane in range(32)):
            raise PtxError(f"{what}: lanes of the mask {named:#x} are not here, {int(here.sum())} are")
        if any(not named >> int(lane) & 1 for lane in np.flatnonzero(here)):
            raise PtxError(f"{what}: a lane is not in the mask {named:#x}")
        return here

    def _matrix_rows(self, w, q, a, n):
        self._all(q, "ldmatrix")
        # The first 8 n lanes give addresses; those of the others are not looked at.
        a = np.where(_LANE < 8 * n, a, a[0])
        views, i = self.locate(w, None, a, "shared" if a.dtype.itemsize == 4 else "generic", 16)
        return i[: 8 * n]

    def load_matrix(self, w, q, a, n, transposed):
        i = self._matrix_rows(w, q, a, n)
        if self.races:
            self.races.read(w.clock_, w.slot, i, 16)
        m = self.memory.rows(2, 8)[i].reshape(n, 8, 8)
        m = m.transpose(0, 2, 1) if transposed else m
        return np.ascontiguousarray(m).view(U32).reshape(n, 32)

    def store_matrix(self, w, q, a, values, transposed):
        i = self._matrix_rows(w, q, a, len(values))
        m = np.stack(values).view(U16).reshape(-1, 8, 8)
        rows = (m.transpose(0, 2, 1) if transposed else m).reshape(-1, 8)
        if self.races:
            self.races.write(w.clock_, w.slot, i, 16, w.at, lambda: self.memory.rows(2, 8)[i] != rows)
        self.memory.rows(2, 8)[i] = rows

    def transposed(self, w, q, value):
        self._all(q, "movmatrix")
        m = np.ascontiguousarray(value).view(U16).reshape(8, 8).T
        return np.ascontiguousarray(m).view(U32).reshape(32)

    def matrix_product(self, w, q, K, ty, A, B, C):
        self._all(q, "mma")
        narrow = ty == "tf32"
        if (K, narrow) not in self.places:
            self.places[K, narrow] = _fragment_places(K, narrow)
        at_a, at_b, at_c = self.places[K, narrow]
        matrices = []
        for registers, at in ((A, at_a), (B, at_b)):
            bits = np.stack(registers)
            if ty == "bf16":
                values = bf2f(bits.view(U16))
            elif ty == "f16":
                values = bits.view(np.float16).astype(np.float32)
            else:
                # The unit does not look at the lower bits of a tf32 operand.
                values = (bits & U32(0xFFFFE000)).view(np.float32)
            flat = np.empty(at.size, np.float32)
            flat[at] = values.ravel()
            matrices.append(flat)
        product = (matrices[0].reshape(16, K) @ matrices[1].reshape(K, 8)).ravel()
        return [c + product[at] for c, at in zip(C, at_c)]

    def shuffle(self, w, q, mode, value, b, c, members):
        here = self._members(w, q, members, "shfl")
        b, c = b.astype(int), c.astype(int)
        segment, clamp = (c >> 8) & 31, c & 31
        low = _LANE & segment
        high = low | (clamp & ~segment)
        b = b & 31
        source = {"bfly": _LANE ^ b, "idx": low | (b & ~segment), "up": _LANE - b, "down": _LANE + b}[mode]
        inside = source >= high if mode == "up" else source <= high
        source = np.where(inside, source, _LANE) & 31
        lost = here & ~here[source]
        if lost.any():
            raise PtxError(f"shfl: lane {int(lost.argmax())} reads lane {int(source[lost][0])}, which is not here")
        return value[source], inside

    def vote(self, w, q, mode, value, members):
        here = self._members(w, q, members, "vote")
        if mode == "ballot":
            return np.full(32, np.packbits(value & here, bitorder="little").view(U32)[0], U32)
        chosen = value[here]
        return np.full(32, {"all": chosen.all(), "any": chosen.any(),
                            "uni": chosen.all() or not chosen.any()}[mode], bool)

    def match(self, w, q, everyone, value, members):
        here = self._members(w, q, members, "match")
        same = (value[:, None] == value[None, :]) & here[None, :]
        masks = np.packbits(same, axis=1, bitorder="little").view(U32)[:, 0]
        if not everyone:
            return masks, here
        equal = bool((value[here] == value[here][0]).all())
        return np.full(32, masks[here.argmax()] if equal else 0, U32), np.full(32, equal)

    def active(self, w, q):
        here = np.ones(32, bool) if q is None else q
        return np.full(32, np.packbits(here, bitorder="little").view(U32)[0], U32)

    def reduce(self, w, q, name, value, members, absolute, nan):
        here = self._members(w, q, members, "redux")
        chosen = np.abs(value[here]) if absolute else value[here]
        functions = {"add": np.add, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
                     "min": np.minimum if nan or value.dtype.kind != "f" else np.fmin,
                     "max": np.maximum if nan or value.dtype.kind != "f" else np.fmax}
        return np.full(32, functions[name].reduce(chosen, dtype=value.dtype), value.dtype)

    def elect(self, w, q, members):
        here = self._members(w, q, members, "elect")
        leader = int(here.argmax())
        return np.full(32, leader, U32), _LANE == leader


