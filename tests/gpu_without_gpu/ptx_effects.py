"""PTX instructions that touch memory or other lanes: each becomes a call of the machine."""

import re

import numpy as np

from .ptx_alu import name_of
from .ptx_types import DT, PtxError

SPACES = {"global": "global", "const": "global", "local": "local", "param": "param"}
ATOMIC = ("add", "cas", "exch", "min", "max", "and", "or", "xor", "inc", "dec")


def space_of(parts):
    for p in parts[1:]:
        if p in SPACES:
            return SPACES[p]
        if p.startswith("shared"):
            return "shared"
    return "generic"


def order_of(parts):
    """``(order, scope)`` of a load, store, atomic or fence; None for a weak one."""
    order = next((p for p in parts if p in ("relaxed", "acquire", "release", "acq_rel", "sc")), None)
    if order is None:
        if not {"volatile", "mmio"} & set(parts):
            return None
        return "relaxed", "sys"
    return order, next((p for p in parts if p in ("cta", "cluster", "gpu", "sys")), None)


class Effects:
    effects = ("ld", "ldu", "st", "atom", "red", "cp", "mbarrier", "fence", "membar", "ldmatrix", "stmatrix", "mma",
               "shfl", "vote", "match", "activemask", "redux", "elect", "mapa", "isspacep", "cvta", "getctarank",
               "prefetch", "prefetchu", "discard", "setmaxnreg", "griddepcontrol", "createpolicy", "movmatrix")

    def _results(self, operands, ty, types=None):
        for i, each in enumerate(operands):
            self.put(each, f"v[{i}]", types[i] if types else ty)

    def i_ld(self, x):
        ty, space = x.parts[-1], space_of(x.parts)
        size = np.dtype(DT[ty]).itemsize
        targets = self.vector(x.ops[0])
        n = len(targets)
        typed = "" if name_of(ty)[0] == "u" else f".view({name_of(ty)})"
        if space == "param":
            # A register holds the address of a kernel's parameter: only those have one.
            symbol = re.match(r"\[\s*([\w$@.]+)", x.ops[1])
            space = "local" if symbol and symbol[1] in self.local else "global"
        order = order_of(x.parts)
        self.line(f"v = K.load(w, {self.guard}, {self.address(x.ops[1])}, '{space}', {size}, {n}, {order})")
        for i, each in enumerate(targets):
            self.put(each, f"v[{i}]{typed}" if n > 1 else f"v{typed}", ty)

    i_ldu = i_ld

    def i_st(self, x):
        ty, space = x.parts[-1], space_of(x.parts)
        size = np.dtype(DT[ty]).itemsize
        values = [self.E(o, f"b{8 * size}") for o in self.vector(x.ops[1])]
        call = f"{self.guard}, {self.address(x.ops[0])}"
        if "async" in x.parts:
            bar = self.address(x.ops[2])
            self.line(f"K.store_async(w, {call}, [{', '.join(values)}], {size}, {bar})")
            return
        space = "local" if space == "param" else space
        self.line(f"K.store(w, {call}, '{space}', {size}, [{', '.join(values)}], {order_of(x.parts)})")

    def _atomic(self, x, target, address, sources):
        name = next((p for p in x.parts[1:] if p in ATOMIC), None)
        ty = x.parts[-1]
        if name is None or ty in ("f16x2", "bf16x2", "bf16", "f16") or "vec" in x.parts or x.ops[-1][0] == "{":
            raise PtxError("not modelled: " + x.text)
        order = order_of(x.parts) or ("relaxed", "gpu")
        order = order[0], order[1] or next((p for p in x.parts if p in ("cta", "cluster", "gpu", "sys")), "gpu")
        values = ", ".join(self.E(o, ty) for o in sources)
        self.line(f"v = K.atomic(w, {self.guard}, {self.address(address)}, '{space_of(x.parts)}', '{name}', "
                  f"{name_of(ty)}, [{values}], {order}, {target is not None})")
        if target:
            self.put(target, "v", ty)

    def i_atom(self, x):
        self._atomic(x, x.ops[0], x.ops[1], x.ops[2:])

    def i_red(self, x):
        if "async" in x.parts:
            name = next(p for p in x.parts[1:] if p in ATOMIC)
            ty = x.parts[-1]
            self.line(f"K.reduce_async(w, {self.guard}, {self.address(x.ops[0])}, '{name}', {self.E(x.ops[1], ty)}, "
                      f"{self.address(x.ops[2])})")
        else:
            self._atomic(x, None, x.ops[0], x.ops[1:])

    def i_fence(self, x):
        if "proxy" in x.parts:
            self.line("K.proxy_fence(w)")
        elif "mbarrier_init" in x.parts:
            self.line("K.fence(w, 'release', 'cluster')")
        else:
            order, scope = order_of(x.parts) or ("acq_rel", "gpu")
            self.line(f"K.fence(w, '{order}', '{scope}')")

    def i_membar(self, x):
        scope = {"cta": "cta", "gl": "gpu", "sys": "sys"}[x.parts[1]]
        self.line(f"K.fence(w, 'sc', '{scope}')")

    def _nothing(self, x):
        pass

    i_prefetch = i_prefetchu = i_discard = i_setmaxnreg = i_griddepcontrol = _nothing

    def i_createpolicy(self, x):
        self.put(x.ops[0], self.constant(0, "u8"), "b64")

    def i_cp(self, x):
        parts, g = x.parts, self.guard
        if parts[1] != "async":
            raise PtxError("not modelled: " + x.text)
        if "commit_group" in parts:
            self.line(f"K.commit_group(w, {g}, {'bulk' in parts})")
        elif "wait_group" in parts or "wait_all" in parts:
            n = int(x.ops[0], 0) if x.ops else 0
            self.line(f"K.wait_group(w, {g}, {n}, {'bulk' in parts}, {'read' in parts})")
        elif "mbarrier" in parts:
            self.line(f"K.copy_arrive(w, {g}, {self.address(x.ops[0])}, {'noinc' in parts})")
        elif "bulk" in parts:
            self._bulk(x)
        else:
            size = int(x.ops[2], 0)
            given = self.E(x.ops[3], "u32") if len(x.ops) > 3 and x.ops[3][0] != "%" else self.constant(size, "u4")
            if "L2" in "".join(parts) and len(x.ops) > 3 and self._is_wide(x.ops[3]):
                given = self.constant(size, "u4")
            self.line(f"K.copy_async(w, {g}, {self.address(x.ops[0])}, {self.address(x.ops[1])}, {size}, {given})")

    def _is_wide(self, operand):
        return operand[0] == "#" and name_of(self.registers[int(operand[1:])]) == "u8"

    def _bulk(self, x):
        spaces = [p for p in x.parts if p in ("global", "shared", "shared::cta", "shared::cluster")]
        if "tensor" in x.parts or "reduce" in x.parts or "prefetch" in x.parts or "multicast::cluster" in x.parts:
            raise PtxError("not modelled: " + x.text)
        to, source = (space if space == "global" else "shared" for space in spaces[:2])
        bar = self.address(x.ops[3]) if to == "shared" else "None"
        self.line(f"K.copy_bulk(w, {self.guard}, '{to}', {self.address(x.ops[0])}, '{source}', "
                  f"{self.address(x.ops[1])}, {self.E(x.ops[2], 'u32')}, {bar})")

    def i_mbarrier(self, x):
        parts, g, ops = x.parts, self.guard, x.ops
        scope = next((p for p in parts if p in ("cta", "cluster")), "cta")
        relaxed = "relaxed" in parts
        what = parts[1]
        if what == "init":
            self.line(f"K.bar_init(w, {g}, {self.address(ops[0])}, {self.E(ops[1], 'u32')})")
        elif what == "inval":
            self.line(f"K.bar_inval(w, {g}, {self.address(ops[0])})")
        elif what in ("expect_tx", "complete_tx"):
            self.line(f"K.bar_tx(w, {g}, {self.address(ops[0])}, {self.E(ops[1], 'u32')}, {what == 'expect_tx'})")
        elif what in ("arrive", "arrive_drop"):
            target = None if ops[0].startswith("[") else ops[0]
            rest = ops if target is None else ops[1:]
            tx = "expect_tx" in parts
            value = self.E(rest[1], "u32") if len(rest) > 1 else self.constant(0 if tx else 1, "u4")
            count, bytes_ = (self.constant(1, "u4"), value) if tx else (value, self.constant(0, "u4"))
            self.line(f"v = K.bar_arrive(w, {g}, {self.address(rest[0])}, {count}, {bytes_}, {what == 'arrive_drop'}, "
                      f"{'noComplete' in parts}, {relaxed}, '{scope}')")
            if target:
                self.put(target, "v", "b64")
        elif what in ("test_wait", "try_wait"):
            state = self.E(ops[2], "u32" if "parity" in parts else "b64")
            self.line(f"v = K.bar_test(w, {g}, {self.address(ops[1])}, {state}, {'parity' in parts}, {relaxed}, "
                      f"'{scope}')")
            self.put(ops[0], "v", "pred")
        elif what == "pending_count":
            self.put(ops[0], f"({self.E(ops[1], 'b64')} & 0xFFFFF).astype(u4)", "u32")
        else:
            raise PtxError("unknown instruction: " + x.text)

    def i_ldmatrix(self, x):
        if "b16" not in x.parts or "m8n8" not in x.parts:
            raise PtxError("not modelled: " + x.text)
        targets = self.vector(x.ops[0])
        self.line(f"v = K.load_matrix(w, {self.guard}, {self.address(x.ops[1])}, {len(targets)}, {'trans' in x.parts})")
        self._results(targets, "b32")

    def i_stmatrix(self, x):
        values = [self.E(o, "b32") for o in self.vector(x.ops[1])]
        self.line(f"K.store_matrix(w, {self.guard}, {self.address(x.ops[0])}, [{', '.join(values)}], "
                  f"{'trans' in x.parts})")

    def i_movmatrix(self, x):
        self.line(f"v = K.transposed(w, {self.guard}, {self.E(x.ops[1], 'b32')})")
        self.put(x.ops[0], "v", "b32")

    def i_mma(self, x):
        shape = next(p for p in x.parts if re.match(r"m\d+n\d+k\d+$", p))
        at = x.parts.index(shape)
        d, a, b, c = x.parts[-4:]
        known = {("m16n8k16", "bf16"), ("m16n8k16", "f16"), ("m16n8k8", "tf32"), ("m16n8k8", "bf16"),
                 ("m16n8k8", "f16"), ("m16n8k4", "tf32")}
        if (shape, a) not in known or a != b or (d, c) != ("f32", "f32") or x.parts[at + 1 : at + 3] != ["row", "col"]:
            raise PtxError("not modelled: " + x.text)
        A, B = ([self.E(o, "b32") for o in self.vector(operand)] for operand in x.ops[1:3])
        C = [self.E(o, "f32") for o in self.vector(x.ops[3])]
        self.line(f"v = K.matrix_product(w, {self.guard}, {int(shape.split('k')[1])}, '{a}', [{', '.join(A)}], "
                  f"[{', '.join(B)}], [{', '.join(C)}])")
        self._results(self.vector(x.ops[0]), "f32")

    def i_shfl(self, x):
        mode = next(p for p in x.parts if p in ("bfly", "idx", "up", "down"))
        a, b, c = (self.E(o, "u32") for o in x.ops[1:4])
        members = self.E(x.ops[4], "u32") if len(x.ops) > 4 else self.constant(0xFFFFFFFF, "u4")
        self.line(f"v = K.shuffle(w, {self.guard}, '{mode}', {a}, {b}, {c}, {members})")
        for each, value, ty in zip(x.ops[0].split("|"), ("v[0]", "v[1]"), ("b32", "pred")):
            self.put(each, value, ty)

    def i_vote(self, x):
        mode = next(p for p in x.parts if p in ("all", "any", "uni", "ballot"))
        members = self.E(x.ops[2], "u32") if len(x.ops) > 2 else self.constant(0xFFFFFFFF, "u4")
        self.line(f"v = K.vote(w, {self.guard}, '{mode}', {self.E(x.ops[1], 'pred')}, {members})")
        self.put(x.ops[0], "v", "b32" if mode == "ballot" else "pred")

    def i_match(self, x):
        ty = x.parts[-1]
        value, members = self.E(x.ops[1], ty), self.E(x.ops[2], "u32")
        self.line(f"v = K.match(w, {self.guard}, {'all' in x.parts}, {value}, {members})")
        for each, value, kind in zip(x.ops[0].split("|"), ("v[0]", "v[1]"), ("b32", "pred")):
            self.put(each, value, kind)

    def i_activemask(self, x):
        self.line(f"v = K.active(w, {self.guard})")
        self.put(x.ops[0], "v", "b32")

    def i_redux(self, x):
        name = next(p for p in x.parts if p in ("add", "min", "max", "and", "or", "xor"))
        ty = x.parts[-1]
        self.line(f"v = K.reduce(w, {self.guard}, '{name}', {self.E(x.ops[1], ty)}, {self.E(x.ops[2], 'u32')}, "
                  f"{'abs' in x.parts}, {'NaN' in x.parts})")
        self.put(x.ops[0], "v", ty)

    def i_elect(self, x):
        self.line(f"v = K.elect(w, {self.guard}, {self.E(x.ops[1], 'u32')})")
        for each, value, ty in zip(x.ops[0].split("|"), ("v[0]", "v[1]"), ("b32", "pred")):
            self.put(each, value, ty)

    def i_mapa(self, x):
        ty = x.parts[-1]
        source = self.address(x.ops[1]) if x.ops[1][0] == "[" else self.E(x.ops[1], ty)
        self.line(f"v = K.map_address(w, {self.guard}, {source}, {self.E(x.ops[2], 'u32')}, {space_of(x.parts)!r})")
        self.put(x.ops[0], f"v.astype({name_of(ty)})", ty)

    def i_getctarank(self, x):
        self.line(f"v = K.rank_of(w, {self.guard}, {self.E(x.ops[1], x.parts[-1])}, {space_of(x.parts)!r})")
        self.put(x.ops[0], "v", "u32")

    def i_isspacep(self, x):
        self.line(f"v = K.in_space(w, {self.E(x.ops[1], 'u64')}, '{x.parts[1]}')")
        self.put(x.ops[0], "v", "pred")

    def i_cvta(self, x):
        ty = x.parts[-1]
        self.line(f"v = K.convert_address(w, {self.guard}, {self.E(x.ops[1], 'u64')}, '{space_of(x.parts)}', "
                  f"{'to' in x.parts})")
        self.put(x.ops[0], "v", ty, "u8")
