"""From PTX to Python: the instructions between two jumps become one function of numpy operations on a warp."""

import re

import numpy as np

from . import ptx_numeric
from .ptx_alu import Arithmetic, name_of
from .ptx_effects import Effects
from .ptx_types import DT, PtxError

CONTROL = ("bra", "brx", "call", "ret", "exit", "trap", "brkpt", "bar", "barrier", "nanosleep")
"""Carried out by the scheduler: they end a block."""
SYNCHRONISING = ("mbarrier", "atom", "red", "fence", "membar", "cp")
"""Other warps may run after these, so that they end a block, as loads and stores with an order do."""
ORDERED = ("relaxed", "acquire", "release", "acq_rel", "volatile", "mmio", "sc")


def ends_block(x):
    head = x.parts[0]
    return head in CONTROL or head in SYNCHRONISING or (head in ("ld", "st") and (
        "async" in x.parts or any(p in ORDERED for p in x.parts)))


class Block:
    """Instructions ``start`` to ``end``; ``control`` is the last of them where the scheduler carries it out."""

    __slots__ = ("start", "end", "control", "functions")


class Code(Arithmetic, Effects):
    """The program of one kernel, compiled block by block as it is reached."""

    def __init__(self, module, entry, addresses):
        self.addresses = addresses
        self.instructions, self.registers, self.functions = [], [], {}
        self.starts = set()
        self.local = {}
        self.local_size = 0
        for function in [entry, *(f for f in module.functions.values() if not f.entry)]:
            self._add(function)
        self.namespace = {"np": np, "where": np.where, "fmax": np.fmax} | {
            name: value for name, value in vars(ptx_numeric).items() if not name.startswith("_")}
        self.namespace |= {name_of(ty): DT[ty] for ty in DT if ty != "pred"}
        self.constants, self.blocks = {}, {}

    def _add(self, function):
        base, first = len(self.registers), len(self.instructions)
        self.registers += function.registers
        if not function.entry:
            for variable in function.params + function.results:
                self._place_local(variable)
        for variable in function.variables:
            if variable.space in ("local", "param"):
                self._place_local(variable)
        self.functions[function.name] = (first, function)
        self.starts.add(first)
        for x in function.instructions:
            x.ops = [re.sub(r"#(\d+)", lambda m: f"#{int(m[1]) + base}", o) for o in x.ops]
            x.pred = x.pred + base if x.pred is not None else None
            x.targets = [first + t for t in x.targets]
            self.starts.update(x.targets)
            self.instructions.append(x)
        self.starts.update(first + at for at in function.labels.values())

    def _place_local(self, variable):
        at = -(-self.local_size // variable.align) * variable.align
        self.local[variable.name] = at
        self.local_size = at + variable.size

    def block(self, start):
        if start not in self.blocks:
            if start >= len(self.instructions):
                raise PtxError("the program runs past its end")
            b = Block()
            b.start, b.functions, b.control = start, [None, None], None
            at = start
            while True:
                x = self.instructions[at]
                at += 1
                if x.parts[0] in CONTROL:
                    b.control = x
                if ends_block(x) or at in self.starts or at == len(self.instructions):
                    break
            b.end = at
            self.blocks[start] = b
        return self.blocks[start]

    def function(self, block, masked):
        """The compiled block: ``f(w)`` for all lanes of a warp, ``f(w, m)`` for some."""
        if block.functions[masked] is None:
            self.lines, self.masked = [], masked
            for at in range(block.start, block.end - (block.control is not None)):
                self._instruction(at)
            body = "\n".join(["def f(w, m=None):", "    R, K = w.R, w.K", *self.lines])
            exec(compile(body, f"<ptx {block.start}>", "exec"), self.namespace)
            block.functions[masked] = self.namespace.pop("f")
        return block.functions[masked]

    def _instruction(self, at):
        x = self.instructions[at]
        write = getattr(self, "i_" + x.parts[0], None)
        if not write:
            raise PtxError("unknown instruction: " + x.text)
        self.guard = "None"
        self.indent = "    "
        if x.pred is not None:
            p = f"{'~' if x.neg else ''}R[{x.pred}]"
            self.line(f"q = {p} & m" if self.masked else f"q = {p}")
            self.guard = "q"
        elif self.masked:
            self.guard = "m"
        if x.parts[0] in self.effects:
            self.line(f"w.at = {at}")
            if x.pred is not None:
                self.line("if q.all(): q = None")
                self.line("if q is None or q.any():")
                self.indent = "        "
        try:
            write(x)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise PtxError(f"cannot read: {x.text} ({error!r})") from error

    def line(self, text):
        self.lines.append(self.indent + text)

    def constant(self, bits, dtype):
        """A name for all lanes' constant of this numpy type, whose bits are given."""
        size = int(dtype[1:])
        bits &= (1 << 8 * size) - 1
        name = f"c_{dtype}_{bits:x}"
        if name not in self.namespace:
            value = np.full(32, np.array([bits], f"u{size}"))
            value = value.view(dtype)
            value.flags.writeable = False
            self.namespace[name] = value
        return name

    def E(self, operand, ty):
        """A numpy expression of the operand's value in all lanes, as PTX type ``ty``."""
        if ty == "pred":
            negated = operand.startswith("!")
            operand = operand.lstrip("!")
            if operand[0] != "#":
                self.namespace["c_true"], self.namespace["c_false"] = np.ones(32, bool), np.zeros(32, bool)
                return "c_true" if bool(self.literal(operand)[0]) != negated else "c_false"
            return ("~" if negated else "") + f"R[{operand[1:]}]"
        want = name_of(ty)
        if operand[0] == "#":
            number = int(operand[1:])
            return self._as(f"R[{number}]", name_of(self.registers[number]), want)
        if operand[0] == "%":
            if operand in ("%clock64", "%globaltimer", "%clock", "%clock_hi", "%globaltimer_lo", "%globaltimer_hi"):
                return self._as("w.clock()", "u8", want)
            return self._as(f"w.S['{operand}']", "u4", want)
        symbol = re.match(r"([A-Za-z_$][\w$@.]*)(?:\+(-?\d+))?$", operand)
        if symbol and operand != "WARP_SZ":
            return self.constant(self.address_of(symbol[1]) + int(symbol[2] or 0), want)
        bits, float_size = self.literal(operand) if operand != "WARP_SZ" else (32, 0)
        if want[0] == "f" and float_size and float_size != int(want[1]):
            value = np.array([bits], f"u{float_size}").view(f"f{float_size}").astype(want)
            bits = int(value.view(f"u{want[1]}")[0])
        return self.constant(bits, want)

    def address_of(self, symbol):
        for table in (self.local, self.addresses):
            if symbol in table:
                return table[symbol]
        raise PtxError("unknown symbol " + symbol)

    @staticmethod
    def _as(expression, have, want):
        if have == want:
            return expression
        if have[1:] == want[1:]:
            return f"{expression}.view({want})"
        unsigned = expression if have[0] == "u" else f"{expression}.view(u{have[1:]})"
        narrowed = f"{unsigned}.astype(u{want[1:]})"
        return narrowed if want[0] == "u" else f"{narrowed}.view({want})"

    def put(self, operand, expression, ty, dtype=None):
        """``operand = expression``, whose numpy type is ``dtype`` or that of ``ty``, in the lanes that run."""
        if operand == "_":
            return
        number = int(operand[1:])
        if ty == "pred":
            value = expression
        else:
            have, want = dtype or name_of(ty), name_of(self.registers[number])
            if ty[0] == "s" and int(want[1:]) > int(have[1:]):
                # The sign fills what the register has more.
                narrow = self._as(f"({expression})", have, "i" + have[1:])
                expression, have = f"{narrow}.astype(i{want[1:]})", "i" + want[1:]
            value = expression if have == want else self._as(f"({expression})", have, want)
        if self.guard != "None":
            # An effect that all lanes carry out has no mask left.
            some = f"where({self.guard}, {value}, R[{number}])"
            value = f"{value} if q is None else {some}" if self.indent == "        " else some
        self.line(f"R[{number}] = {value}")

    def address(self, operand, ty="u64"):
        """The expression of an address operand ``[base + offset]``."""
        m = re.match(r"\[\s*([#\w$@.%]+)\s*(?:\+\s*(-?\w+))?\s*\]$", operand)
        base, offset = m[1], int(m[2], 0) if m[2] else 0
        if base[0] != "#":
            place = int(base, 0) if base[0].isdigit() else self.address_of(base)
            return self.constant(place + offset, "u8")
        kind = name_of(self.registers[int(base[1:])])
        value = f"R[{base[1:]}]"
        return f"({value} + {self.constant(offset, kind)})" if offset else value


def initial_registers(code):
    """Poison: NaN, or all ones."""
    values = {}
    for ty in set(code.registers):
        if ty == "pred":
            values[ty] = np.zeros(32, bool)
        else:
            size = np.dtype(DT[ty]).itemsize
            values[ty] = np.full(32 * size, 0xFF, np.uint8).view(DT[ty])
    return [values[ty] for ty in code.registers]
