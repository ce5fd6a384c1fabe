"""PTX text taken apart: the functions of a module, their registers, variables and instructions."""

import re

import numpy as np

from .ptx_types import DT, PtxError, split_ops

_DECLARATION = re.compile(
    r"(?:\.(?:visible|weak|extern|common)\s+)*\.(shared|global|const|local|param)\s+(?:\.attribute\([^)]*\)\s+)?"
    r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+)?(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?([%$\w]+)\s*(\[\s*\d*\s*\])?"
    r"\s*(?:=\s*(.*))?$", re.S)


class Instruction:
    """One instruction: ``@neg pred``, the opcode cut at its dots, operands with registers replaced by numbers."""

    __slots__ = ("pred", "neg", "parts", "ops", "text", "targets")


class Variable:
    """A declared variable: its state space, alignment, size in bytes and initial bytes."""

    def __init__(self, text):
        m = _DECLARATION.match(text)
        if not m:
            raise PtxError("cannot parse: " + text)
        self.space, self.name, self.type = m[1], m[4], m[3]
        item = np.dtype(DT[m[3]])
        count = m[5].strip("[] ") if m[5] else "1"
        self.align = int(m[2] or item.itemsize)
        self.size = item.itemsize * int(count or 0)
        self.initial = b""
        if m[6]:
            values = [int(v, 0) if "0f" not in v.lower() else int(v[2:], 16) for v in split_ops(m[6].strip("{} \n"))]
            self.initial = b"".join((v & (1 << 8 * item.itemsize) - 1).to_bytes(item.itemsize, "little")
                                    for v in values)


class Function:
    """A ``.entry`` or ``.func``; ``registers`` lists the PTX type of each register."""

    def __init__(self, name, entry):
        self.name, self.entry = name, entry
        self.params, self.results = [], []
        self.registers, self.variables, self.instructions, self.labels = [], [], [], {}


class Module:
    """All functions and the variables outside them."""

    def __init__(self, text):
        text = re.sub(r"//[^\n]*", "", text)
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        text = re.sub(r"^\s*\.(version|target|address_size|loc|file)\b[^\n]*$", "", text, flags=re.M)
        self.functions, self.variables = {}, []
        at = 0
        while True:
            m = re.compile(r"\s*([^;{]*?)\s*([;{])").match(text, at)
            if not m:
                break
            head, at = m[1], m.end()
            if m[2] == ";":
                if re.search(r"\.(shared|global|const)\b", head) and ".func" not in head:
                    self.variables.append(Variable(head))
            elif re.search(r"\.(entry|func)\b", head):
                end = _closing(text, at)
                self._function(head, text[at : end])
                at = end + 1
            elif ".section" in head:
                at = _closing(text, at) + 1
            else:
                # A variable whose initial values stand in braces.
                end = text.index(";", at)
                self.variables.append(Variable(head + "{" + text[at:end]))
                at = end + 1

    def _function(self, head, body):
        m = re.search(r"\.(entry|func)\s*(?:\(([^)]*)\))?\s*([$\w]+)\s*(?:\((.*)\))?", head, re.S)
        function = Function(m[3], m[1] == "entry")
        function.results = [Variable(each) for each in split_ops(m[2] or "")]
        params = (m[4] or "").split(")")[0]
        function.params = [Variable(each) for each in split_ops(params)]
        _Body(function).read(body)
        self.functions[function.name] = function


def _closing(text, at):
    depth = 1
    for m in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if m[0] == "{" else -1
        if depth == 0:
            return m.start()
    raise PtxError("a brace is not closed")


class _Body:
    """Reads the statements of a function; names of registers, labels and variables are those of the scope."""

    def __init__(self, function):
        self.function = function
        self.scopes, self.count = [{}], 0
        self.unresolved = []

    def read(self, body):
        at = 0
        token = re.compile(r"\s*(?:([{}])|([$%\w]+)\s*:(?!:)|([^;]*);)", re.S)
        while body[at:].strip():
            m = token.match(body, at)
            if not m:
                raise PtxError("cannot parse: " + body[at : at + 80])
            at = m.end()
            if m[1] == "{":
                self.scopes.append({})
            elif m[1] == "}":
                self.scopes.pop()
            elif m[2]:
                self._label(m[2])
            elif m[3].strip():
                self._statement(m[3].strip())
        for instruction, name, scopes in self.unresolved:
            places = [scope[name] for scope in reversed(scopes) if name in scope]
            if not places:
                raise PtxError(f"no label {name}: {instruction.text}")
            instruction.targets.append(places[0][1])
        for instruction in self.function.instructions:
            if instruction.parts[0] == "brx":
                instruction.targets = instruction.targets[0]

    def _label(self, name):
        self.scopes[-1][name] = ("label", len(self.function.instructions))
        self.function.labels[name, len(self.scopes[-1])] = len(self.function.instructions)
        self.last_label = name

    def _statement(self, text):
        if text.startswith(".reg"):
            m = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S)
            for name in split_ops(m[2]):
                many = re.match(r"(%?[\w$]+)<(\d+)>", name)
                for each in ([f"{many[1]}{j}" for j in range(int(many[2]))] if many else [name]):
                    self.scopes[-1][each] = ("register", len(self.function.registers))
                    self.function.registers.append(m[1])
        elif text.startswith(".branchtargets"):
            names = [each.strip() for each in text.split(None, 1)[1].split(",")]
            place = _Targets()
            self.scopes[-1][self.last_label] = ("label", place.targets)
            place.text = text
            self.unresolved += [(place, name, list(self.scopes)) for name in names]
        elif re.match(r"\.(shared|local|param|global|const)\b", text):
            variable = Variable(text)
            self.count += 1
            unique = f"{variable.name}@{self.function.name}.{self.count}"
            self.scopes[-1][variable.name] = ("variable", unique)
            variable.name = unique
            self.function.variables.append(variable)
        elif not text.startswith("."):
            self._instruction(text)

    def _instruction(self, text):
        m = re.match(r"(?:@(!?)\s*(%?[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", text, re.S)
        if not m:
            raise PtxError("cannot parse: " + text)
        x = Instruction()
        x.neg, x.text = m[1] == "!", " ".join(text.split())
        x.parts, x.targets = m[3].split("."), []
        x.pred = self._named(m[2])[1] if m[2] else None
        operands = " ".join(m[4].split())
        branch = x.parts[0] in ("bra", "brx")
        if branch:
            x.ops = split_ops(operands)
            self.unresolved.append((x, x.ops[-1], list(self.scopes)))
            x.ops = [self._renamed(each) for each in x.ops[:-1]]
        else:
            x.ops = [self._renamed(each) for each in split_ops(operands)]
        self.function.instructions.append(x)

    def _named(self, name):
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None, None

    def _renamed(self, operand):
        """The operand with ``#17`` for register 17 and scoped variables by their unique names."""
        def one(m):
            kind, value = self._named(m[0])
            return f"#{value}" if kind == "register" else value if kind == "variable" else m[0]
        return re.sub(r"[%$A-Za-z_][\w$]*", one, operand)


class _Targets:
    def __init__(self):
        self.targets = []
