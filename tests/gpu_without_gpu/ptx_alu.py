"""PTX instructions between registers, as numpy expressions of the values that the lanes of a warp hold."""

import re

import numpy as np

from .ptx_types import DT, PtxError

NAMES = {np.dtype(t): f"{np.dtype(t).kind}{np.dtype(t).itemsize}" for t in DT.values() if t is not np.bool_}
PACKED = ("bf16", "bf16x2", "f16x2", "f32x2")
"""What numpy has no type for: computed in float64, ``up_*`` and ``pk_*`` convert."""
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">",
            "hs": ">="}
_INTEGER_ROUNDING = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
_PAIRS = ("0", "~({a}|{b})", "~{a}&{b}", "~{a}", "{a}&~{b}", "~{b}", "{a}^{b}", "~({a}&{b})", "{a}&{b}",
          "~({a}^{b})", "{b}", "~{a}|{b}", "{a}", "{a}|~{b}", "{a}|{b}", "~0")
"""Functions of two bits by truth table, bit 2a + b."""


def name_of(ty):
    return NAMES[np.dtype(DT[ty])]


def unsigned_of(ty):
    return f"u{np.dtype(DT[ty]).itemsize}"


class Arithmetic:
    """``i_<opcode>(x)`` writes the code of one instruction, through ``E`` (an operand) and ``put`` (a result)."""

    def _floats(self, x, ty, formula, exact=True):
        """A formula of floats. ``exact``: one operation, so that numpy rounds it as the GPU does."""
        mode = next((p for p in x.parts if p in ("rz", "rm", "rp")), None)
        narrow = ty if ty in ("f16", "bf16") and "f32" in x.parts[:-1] else None
        ty = "f32" if narrow else ty
        if ty in PACKED:
            result = f"pk_{ty}({formula(*(f'up_{ty}({self.E(o, ty)})' for o in x.ops[1:]))})"
        else:
            operands = [self.E(o, ty) for o in x.ops[1:]]
            if narrow:
                # Operands of a mixed instruction but the last are of the narrow type.
                bits = [self.E(o, narrow) for o in x.ops[1:-1]]
                operands[:-1] = [f"bf2f({o})" if narrow == "bf16" else f"{o}.astype(f4)" for o in bits]
            if ty != "f64" and (mode or not exact):
                operands = [f"{o}.astype(f8)" for o in operands]
            result = formula(*operands)
            if mode:
                result = f"directed({result}, {name_of(ty)}, '{mode}')"
            elif ty != "f64" and not exact:
                result = f"({result}).astype({name_of(ty)})"
        if "relu" in x.parts:
            result = f"pk_{ty}(fmax(up_{ty}({result}), 0.0))" if ty in PACKED else f"fmax({result}, 0)"
        if "sat" in x.parts:
            result = f"unit({result})"
        self.put(x.ops[0], result, ty)

    def _binary(self, x, sign):
        ty = x.parts[-1]
        if "cc" in x.parts or x.parts[0].endswith("c"):
            raise PtxError("carry is not modelled: " + x.text)
        if "f" in ty:
            self._floats(x, ty, lambda a, b: f"({a} {sign} {b})")
        elif "sat" in x.parts:
            a, b = (f"{self.E(o, ty)}.astype(i8)" for o in x.ops[1:])
            self.put(x.ops[0], f"saturated({a} {sign} {b}, {name_of(ty)})", ty)
        else:
            u = unsigned_of(ty)
            a, b = (self.E(o, "u" + str(8 * int(u[1]))) for o in x.ops[1:3])
            self.put(x.ops[0], f"({a} {sign} {b})", ty, u)

    def i_add(self, x):
        self._binary(x, "+")

    def i_sub(self, x):
        self._binary(x, "-")

    def i_mul(self, x):
        ty = x.parts[-1]
        if "wide" in x.parts:
            self.put(x.ops[0], self._wide_product(x, ty), self._wider(ty))
        elif "hi" in x.parts:
            self.put(x.ops[0], f"high_product({self.E(x.ops[1], ty)}, {self.E(x.ops[2], ty)})", ty)
        else:
            self._binary(x, "*")

    @staticmethod
    def _wider(ty):
        return f"{ty[0]}{2 * int(ty[1:])}"

    def _wide_product(self, x, ty):
        wide = name_of(self._wider(ty))
        return " * ".join(f"{self.E(o, ty)}.astype({wide})" for o in x.ops[1:3])

    def i_mad(self, x):
        ty = x.parts[-1]
        if "f" in ty:
            return self.i_fma(x)
        if "cc" in x.parts:
            raise PtxError("carry is not modelled: " + x.text)
        wide = self._wider(ty) if "wide" in x.parts else ty
        if "wide" in x.parts:
            product = self._wide_product(x, ty)
        elif "hi" in x.parts:
            product = f"high_product({self.E(x.ops[1], ty)}, {self.E(x.ops[2], ty)})"
        else:
            product = f"{self.E(x.ops[1], ty)} * {self.E(x.ops[2], ty)}"
        self.put(x.ops[0], f"({product} + {self.E(x.ops[3], wide)})", wide)

    def i_fma(self, x):
        self._floats(x, x.parts[-1], lambda a, b, c: f"({a} * {b} + {c})", exact=False)

    def i_div(self, x):
        ty = x.parts[-1]
        if "f" in ty:
            self._floats(x, ty, lambda a, b: f"({a} / {b})")
        else:
            self.put(x.ops[0], f"divide({self.E(x.ops[1], ty)}, {self.E(x.ops[2], ty)})", ty)

    def _simple(self, x, formula):
        ty = x.parts[-1]
        self.put(x.ops[0], formula(*(self.E(o, ty) for o in x.ops[1:])), ty)

    def i_rem(self, x):
        self._simple(x, lambda a, b: f"np.fmod({a}, {b})")

    def _sign(self, x, function, bits):
        ty = x.parts[-1]
        if ty in ("bf16", "bf16x2", "f16x2"):
            self.put(x.ops[0], bits(self.E(x.ops[1], ty), self.constant(0x80008000, name_of(ty))), ty)
        else:
            self._simple(x, lambda a: f"{function}({a})")

    def i_neg(self, x):
        self._sign(x, "-", lambda a, sign: f"({a} ^ {sign})")

    def i_abs(self, x):
        self._sign(x, "np.abs", lambda a, sign: f"({a} & ~{sign})")

    def _extreme(self, x, which):
        ty = x.parts[-1]
        if "f" not in ty:
            return self._simple(x, lambda a, b: f"np.{which}imum({a}, {b})")
        function = f"np.{which}imum" if "NaN" in x.parts else f"np.f{which[:3]}"
        self._floats(x, ty, lambda *o: o[0] if len(o) == 1 else f"{function}({o[0]}, {o[1]})" if len(o) == 2
                     else f"{function}({function}({o[0]}, {o[1]}), {o[2]})")

    def i_min(self, x):
        self._extreme(x, "min")

    def i_max(self, x):
        self._extreme(x, "max")

    def i_and(self, x):
        self._simple(x, lambda a, b: f"({a} & {b})")

    def i_or(self, x):
        self._simple(x, lambda a, b: f"({a} | {b})")

    def i_xor(self, x):
        self._simple(x, lambda a, b: f"({a} ^ {b})")

    def i_not(self, x):
        self._simple(x, lambda a: f"~{a}")

    def i_cnot(self, x):
        self._simple(x, lambda a: f"({a} == 0).astype({name_of(x.parts[-1])})")

    def _shift(self, x, sign):
        # numpy shifts by the width or more as PTX does: to zero, or to the sign.
        ty = x.parts[-1]
        n = name_of(ty)
        by = self.E(x.ops[2], "u32")
        by = by if n == "u4" else f"np.minimum({by}, 64).astype({n})"
        self.put(x.ops[0], f"({self.E(x.ops[1], ty)} {sign} {by})", ty)

    def i_shl(self, x):
        self._shift(x, "<<")

    def i_shr(self, x):
        self._shift(x, ">>")

    def i_shf(self, x):
        a, b, c = (self.E(o, "u32") for o in x.ops[1:])
        self.put(x.ops[0], f"funnel({a}, {b}, {c}, {x.parts[1] == 'l'}, {'wrap' in x.parts})", "b32")

    def i_bfe(self, x):
        a, b, c = self.E(x.ops[1], x.parts[-1]), *(self.E(o, "u32") for o in x.ops[2:])
        self.put(x.ops[0], f"extract({a}, {b}, {c})", x.parts[-1])

    def i_bfi(self, x):
        ty = x.parts[-1]
        a, b, c, d = *(self.E(o, ty) for o in x.ops[1:3]), *(self.E(o, "u32") for o in x.ops[3:])
        self.put(x.ops[0], f"insert({a}, {b}, {c}, {d})", ty)

    def i_bfind(self, x):
        if x.parts[-1][0] == "s" or "shiftamt" in x.parts:
            raise PtxError("not modelled: " + x.text)
        self.put(x.ops[0], f"last_one({self.E(x.ops[1], x.parts[-1])})", "u32")

    def i_clz(self, x):
        self.put(x.ops[0], f"leading_zeros({self.E(x.ops[1], x.parts[-1])})", "u32")

    def i_popc(self, x):
        self.put(x.ops[0], f"np.bitwise_count({self.E(x.ops[1], x.parts[-1])}).astype(u4)", "u32")

    def i_brev(self, x):
        self._simple(x, lambda a: f"reversed_bits({a})")

    def i_lop3(self, x):
        if "|" in x.ops[0]:
            raise PtxError("not modelled: " + x.text)
        table = int(x.ops[4], 0)
        a, b, c = (self.E(o, "u32") for o in x.ops[1:4])
        zero, one = (sum((table >> (2 * i + bit) & 1) << i for i in range(4)) for bit in (0, 1))
        constants = {"0": self.constant(0, "u4"), "~0": self.constant(0xFFFFFFFF, "u4")}
        low, high = (constants.get(text, text.format(a=a, b=b)) for text in (_PAIRS[zero], _PAIRS[one]))
        if zero == one:
            result = low
        elif zero == 0:
            result = f"({high}) & {c}"
        elif one == 0:
            result = f"({low}) & ~{c}"
        elif zero == 15:
            result = f"({high}) | ~{c}"
        elif one == 15:
            result = f"({low}) | {c}"
        elif zero == 15 - one:
            result = f"({low}) ^ {c}"
        else:
            result = f"(({high}) & {c}) | (({low}) & ~{c})"
        self.put(x.ops[0], result, "b32")

    def i_prmt(self, x):
        mode = x.parts[-1] if x.parts[-1] != "b32" else None
        a, b, c = (self.E(o, "u32") for o in x.ops[1:])
        self.put(x.ops[0], f"permuted({a}, {b}, {c}, {mode!r})", "b32")

    def i_mov(self, x):
        ty = x.parts[-1]
        if x.ops[0].startswith("{"):
            names = self.vector(x.ops[0])
            width = 8 * np.dtype(DT[ty]).itemsize // len(names)
            self.line(f"v = unpacked({self.E(x.ops[1], ty)}, {len(names)})")
            for i, each in enumerate(names):
                self.put(each, f"v[{i}]", f"b{width}")
        elif x.ops[1].startswith("{"):
            names = self.vector(x.ops[1])
            width = 8 * np.dtype(DT[ty]).itemsize // len(names)
            self.put(x.ops[0], f"packed([{', '.join(self.E(o, f'b{width}') for o in names)}], {name_of(ty)})", ty)
        else:
            self.put(x.ops[0], self.E(x.ops[1], ty), ty)

    def i_selp(self, x):
        ty = x.parts[-1]
        self.put(x.ops[0], f"where({self.E(x.ops[3], 'pred')}, {self.E(x.ops[1], ty)}, {self.E(x.ops[2], ty)})", ty)

    def i_slct(self, x):
        ty, by = x.parts[-2:]
        a, b = (self.E(o, ty) for o in x.ops[1:3])
        self.put(x.ops[0], f"where({self.E(x.ops[3], by)} >= 0, {a}, {b})", ty)

    def _comparison(self, c, ty, a, b):
        if "f" not in ty:
            return f"({a} {_COMPARE[c]} {b})"
        if ty in PACKED:
            a, b = f"up_{ty}({a})", f"up_{ty}({b})"
        unordered = f"(np.isnan({a}) | np.isnan({b}))"
        if c in ("num", "nan"):
            return unordered if c == "nan" else f"~{unordered}"
        if c.endswith("u") and len(c) == 3:
            # An unordered comparison is true of NaN: the opposite of the opposite, and for ne numpy's own.
            opposite = {"lt": ">=", "le": ">", "gt": "<=", "ge": "<", "ne": "=="}.get(c[:2])
            return f"~({a} {opposite} {b})" if opposite else f"(({a} == {b}) | {unordered})"
        # numpy's != is true of NaN, PTX's ordered one is not.
        return f"(({a} < {b}) | ({a} > {b}))" if c == "ne" else f"({a} {_COMPARE[c]} {b})"

    def i_setp(self, x):
        ty, c = x.parts[-1], x.parts[1]
        a, b = (self.E(o, ty) for o in x.ops[1:3])
        self.line(f"v = {self._comparison(c, ty, a, b)}")
        results = ["v", "~v"]
        if ty in ("bf16x2", "f16x2"):
            results = ["v[::2]", "v[1::2]"]
        combine = next((p for p in x.parts[2:-1] if p in ("and", "or", "xor")), None)
        if combine:
            negated = x.ops[3].startswith("!")
            other = ("~" if negated else "") + self.E(x.ops[3].lstrip("!"), "pred")
            results = [f"({r} {dict(zip(('and', 'or', 'xor'), '&|^'))[combine]} {other})" for r in results]
        for each, r in zip(x.ops[0].split("|"), results):
            self.put(each, r, "pred")

    def i_set(self, x):
        to, ty = x.parts[-2:]
        if to not in ("u32", "s32", "f32") or any(p in x.parts for p in ("and", "or", "xor")):
            raise PtxError("not modelled: " + x.text)
        test = self._comparison(x.parts[1], ty, *(self.E(o, ty) for o in x.ops[1:3]))
        yes, no = ((self.constant(v, name_of(to))) for v in ((0x3F800000 if to == "f32" else 0xFFFFFFFF), 0))
        self.put(x.ops[0], f"where({test}, {yes}, {no})", to)

    def i_testp(self, x):
        test = {"finite": "np.isfinite({})", "infinite": "np.isinf({})", "notanumber": "np.isnan({})",
                "number": "~np.isnan({})"}.get(x.parts[1])
        if not test:
            raise PtxError("not modelled: " + x.text)
        self.put(x.ops[0], test.format(self.E(x.ops[1], x.parts[-1])), "pred")

    def i_copysign(self, x):
        self._simple(x, lambda a, b: f"np.copysign({b}, {a})")

    def i_cvt(self, x):
        dst, src = x.parts[-2:]
        if len(x.ops) == 3:
            return self._cvt_pack(x, dst)
        a = self.E(x.ops[1], src)
        modes = set(x.parts)
        a = f"bf2f({a})" if src == "bf16" else a
        whole = next((_INTEGER_ROUNDING[p] for p in x.parts if p in _INTEGER_ROUNDING), None)
        directed = next((p for p in x.parts if p in ("rz", "rm", "rp")), None)
        to = name_of(dst) if dst != "tf32" else "f4"
        from_float, to_float = "f" in src, "f" in dst
        if dst == "tf32":
            return self.put(x.ops[0], f"tf32({a}, {'rna' in modes})", "b32")
        if not to_float:
            if from_float:
                result = f"to_integer({a}, {to}, np.{whole})"
            else:
                result = f"saturated({a}, {to})" if "sat" in modes else f"{a}.astype({to})"
            return self.put(x.ops[0], result, dst)
        if whole:
            a = f"np.{whole}({a})"
        if dst == "bf16":
            if directed and directed != "rz":
                raise PtxError("not modelled: " + x.text)
            a = a if src in ("f32", "bf16") else f"{a}.astype(f4)"
            result = f"truncated_bf16({a})" if directed else f"f2bf({a})"
        elif directed:
            result = f"directed({a}.astype(f8), {to}, '{directed}')"
        else:
            result = f"{a}.astype({to})"
        self.put(x.ops[0], f"unit({result})" if "sat" in modes else result, dst)

    def _cvt_pack(self, x, dst):
        if dst not in ("bf16x2", "f16x2"):
            raise PtxError("not modelled: " + x.text)
        halves = [self.E(o, "f32") for o in x.ops[1:]]
        if "relu" in x.parts:
            halves = [f"fmax({h}, 0)" for h in halves]
        if dst == "bf16x2":
            one = "truncated_bf16({})" if "rz" in x.parts else "f2bf({})"
        else:
            one = "directed({}.astype(f8), f2, 'rz').view(u2)" if "rz" in x.parts else "{}.astype(f2).view(u2)"
        self.put(x.ops[0], f"pack({', '.join(one.format(h) for h in halves)})", "b32")

    def _function(self, x, formula):
        self._floats(x, x.parts[-1], lambda a: formula.format(a), exact=False)

    def i_ex2(self, x):
        self._function(x, "np.exp2({})")

    def i_lg2(self, x):
        self._function(x, "np.log2({})")

    def i_rcp(self, x):
        self._function(x, "(1 / {})")

    def i_sqrt(self, x):
        self._function(x, "np.sqrt({})")

    def i_rsqrt(self, x):
        self._function(x, "(1 / np.sqrt({}))")

    def i_tanh(self, x):
        self._function(x, "np.tanh({})")

    def i_sin(self, x):
        self._function(x, "np.sin({})")

    def i_cos(self, x):
        self._function(x, "np.cos({})")

    def vector(self, operand):
        return [each.strip() for each in operand[1:-1].split(",")] if operand.startswith("{") else [operand]

    @staticmethod
    def literal(operand):
        """Bits of a literal and whether it is a float of 4 or 8 bytes (0 for an integer)."""
        m = re.match(r"0[fF]([0-9a-fA-F]{8})$|0[dD]([0-9a-fA-F]{16})$", operand)
        if m:
            return int(m[1] or m[2], 16), 4 if m[1] else 8
        try:
            return int(operand.rstrip("U"), 0), 0
        except ValueError:
            raise PtxError("operand " + operand) from None
