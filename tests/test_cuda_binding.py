"""The compiled module of the CUDA backend called as nothing in the package calls it: an exception, never a crash.

As test_binding.py does for the CPU's, in a process of its own. No call here gets as far as a GPU: those with a mistake
must raise before, and those without one are made only where there is no driver, which is what they must then name.
"""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from test_binding import ARRAYS, MEMORY, NEEDED, NO_ADDRESS, NO_NUMBER, NO_SIZE, NUMBERS, PROBLEM

from xlstm_fused.backends.cuda import plan as planning

_cuda = importlib.import_module("xlstm_fused.backends.cuda")._cuda
H100 = planning.Device((9, 0), 132, 227 << 10)
T, B, D = 3, 2, 5
SHAPE = ("exchange", "tiles", "warps", "shared_bytes", "groups")
INPUT = ("I", "x", "weight_ih", "bias")
# The grid's words, R as the backward pass takes it, and what a forward pass may be given in place of wx.
STEP = ("step", "operand", "product", "carry")
MEMORY = MEMORY | {name: torch.zeros(1 << 12, dtype=torch.int64) for name in (
    "words", "weight_t", *INPUT[1:], *STEP[1:])}
REFUSALS = (TypeError, ValueError, OverflowError, RuntimeError)


def right(function, exchange="alone", cell="slstm", inputs=0):
    """Arguments without a mistake."""
    D = 70 if exchange == "grid" else 5
    plan = planning.plan_for(exchange, 2 if exchange != "alone" else 1, 1, D, 4, H100, function == "backward", inputs)
    values = dict(T=T, B=B, P=T * B, time_stride=B, batch_stride=1, time_offset=0, batch_offset=0, length=0, K=1, N=1,
                  D=D, reverse=0, reset_per_row=0)
    address = {name: each.data_ptr() for name, each in MEMORY.items()}
    arguments = dict(
        cell=cell, kind="float32", shape=plan.launch, plan=plan.fields, device=0, stream=0,
        problem=tuple(values.get(name, address.get(name)) for name in PROBLEM),
        arrays=tuple(address[name] for name in ARRAYS[function]), words=address["words"])
    if function == "backward":
        return arguments | {"weight_t": address["weight_t"]}
    if inputs:
        arguments["arrays"] = (0, *arguments["arrays"][1:])
    return arguments | {"input": (inputs, *(address[name] if inputs else 0 for name in INPUT[1:]))}


def right_step(function, cell="slstm"):
    """The same of one step's launch."""
    arguments = right(function, cell=cell)
    return {name: arguments[name] for name in ("cell", "kind", "device", "stream", "problem", "arrays")} | {
        "step": (1, *(MEMORY[name].data_ptr() for name in STEP[1:]))}


def wrong_step(function):
    """``(arguments with one mistake, what it is)`` of one step's launch, where they are not those of a whole pass."""
    base = right_step(function)
    for index, name in enumerate(STEP):
        values = (-2, -2**63, *NO_NUMBER) if name == "step" else NO_ADDRESS
        # Forward, nothing is carried.
        values += (0,) if name in STEP[1:3] or name == "carry" and function == "backward" else ()
        for value in values:
            yield base | {"step": (*base["step"][:index], value, *base["step"][index + 1:])}, (name, value)
    for value in (None, 7, (), base["step"][:-1], (*base["step"], 0)):
        yield base | {"step": value}, ("step", value)
    for name, values in dict(cell=("", "rnn", None), kind=("", "int8", None), device=(-1, 2**31, None),
                             stream=NO_ADDRESS, problem=(None, base["problem"][:-1]),
                             arrays=((), (*base["arrays"], 0))).items():
        yield from ((base | {name: value}, (name, value)) for value in values)
    for name, value in (("K", 3), ("D", 0), ("P", -1), ("weight_hh", 0)):
        index = PROBLEM.index(name)
        yield base | {"problem": (*base["problem"][:index], value, *base["problem"][index + 1:])}, (name, value)


def wrong(function):
    """``(arguments with one mistake, what it is)``."""
    def changed(name, index, value, base):
        return base | {name: (*base[name][:index], value, *base[name][index + 1:])}

    base, grid = right(function), right(function, "grid")
    for name in NUMBERS:
        for value in (*NO_SIZE, *((0,) if name in ("K", "N", "D") else ())):
            yield changed("problem", PROBLEM.index(name), value, base), (name, value)
    for name in ("reverse", "reset_per_row"):
        yield from ((changed("problem", PROBLEM.index(name), value, base), (name, value)) for value in NO_NUMBER)
    yield changed("problem", PROBLEM.index("K"), 3, base), ("K", 3)
    yield changed("problem", PROBLEM.index("N"), 1 << 16, base), ("N", 1 << 16)
    yield changed("problem", PROBLEM.index("P"), 1 << 31, base), ("P", 1 << 31)
    yield changed("problem", PROBLEM.index("D"), 9, base), ("D", "more than the plan's")
    for fields, names in (("problem", PROBLEM), ("arrays", ARRAYS[function])):
        for index, name in enumerate(names):
            if name in NEEDED[function]:
                yield changed(fields, index, 0, base), (name, 0)
            if name not in (*NUMBERS, "reverse", "reset_per_row"):
                yield from ((changed(fields, index, value, base), (name, value)) for value in NO_ADDRESS)
        for value in (None, 7, (), base[fields][:-1], (*base[fields], 0)):
            yield base | {fields: value}, (fields, value)
    yield grid | {"words": 0}, ("words", 0)
    for name in base.keys() & {"words", "weight_t"}:
        yield from ((base | {name: value}, (name, value)) for value in NO_ADDRESS)
    if function == "backward":
        yield base | {"weight_t": 0}, ("weight_t", 0)
    else:
        given = right(function, "cluster", inputs=17)
        for value in (33, *NO_SIZE):
            yield changed("input", 0, value, given), ("I", value)
        yield grid | {"input": given["input"]}, ("exchange", "a grid, given an input")
        yield base | {"input": given["input"]}, ("shared_bytes", "without W_ih")
        yield changed("shape", SHAPE.index("shared_bytes"), given["shape"][3] - 1, given), ("shared_bytes", "too few")
        for index, name in enumerate(INPUT[1:], 1):
            yield from ((changed("input", index, value, given), (name, value)) for value in (
                *NO_ADDRESS, *((0,) if name != "bias" else ())))
        for value in (None, 7, (), given["input"][:-1], (*given["input"], 0)):
            yield given | {"input": value}, ("input", value)
    for index, name in enumerate(SHAPE):
        values = ("", "mesh", 3, None) if name == "exchange" else (*NO_SIZE[:3], *NO_NUMBER, 2**62)
        yield from ((changed("shape", index, value, base), (name, value)) for value in (
            *values, *((0,) if name in ("tiles", "warps", "groups") else ())))
    yield changed("shape", 1, 2, base), ("tiles", "2, of which there is no kernel")
    for index in range(len(base["plan"])):
        yield from ((changed("plan", index, value, grid), ("plan", index, value)) for value in (
            -1, -2**31, -2**63, *NO_NUMBER))
    for name in ("shape", "plan"):
        yield from ((base | {name: value}, (name, value)) for value in (None, 7, (), base[name][:-1], (*base[name], 0)))
    for name, values in dict(cell=("", "rnn", None, 3), kind=("", "int8", None, torch.float32),
                             device=(-1, 2**31, None), stream=NO_ADDRESS).items():
        yield from ((base | {name: value}, (name, value)) for value in values)


def main():
    count = 0
    for function in ARRAYS:
        mistakes = [(function, *each) for each in wrong(function)]
        for name, arguments, mistake in (*mistakes, *((f"step_{function}", *each) for each in wrong_step(function))):
            # The last line is the call that crashed, if one does.
            print(name, mistake, flush=True)
            try:
                getattr(_cuda, name)(**arguments)
            except REFUSALS as error:
                assert not isinstance(error, RuntimeError) or "cuda" not in str(error).lower(), error
            else:
                raise AssertionError("no exception")
            count += 1
        calls = [(f"step_{function}", right_step(function, cell)) for cell in ("lstm", "gru")]
        calls += [(function, right(function, *each)) for each in (
            ("alone", "gru", 0), ("cluster", "lstm", 0), ("grid", "slstm", 0), ("alone", "slstm", 32),
            ("cluster", "gru", 1)) if function == "forward" or not each[-1]]
        for name, arguments in calls:
            if torch.cuda.is_available():
                break
            print(name, arguments, flush=True)
            try:
                getattr(_cuda, name)(**arguments)
            except RuntimeError as error:
                assert "cudaSetDevice" in str(error), error
            else:
                raise AssertionError("no exception")
    assert count > 400
    print("no crash")


@pytest.mark.skipif(_cuda is None, reason="the cuda backend is not built")
def test_hostile_arguments_are_refused():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-X", "faulthandler", __file__], env=environment, capture_output=True,
                          text=True)
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0 and last == ["no crash"], f"{done.returncode}, {last}\n{done.stderr[-3000:]}"


if __name__ == "__main__":
    main()
