"""The compiled module by itself, called as nothing in the package calls it: an exception, never a crash.

It takes addresses, so what it cannot know is whether arrays are as large as the sizes say; those here are. Numbers that
no array could have, wrong types and tuples of a wrong length it must refuse. The calls are made in a process of their
own: run as a script, this file makes them.
"""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlstm_fused.backends import backends, cpu
from xlstm_fused.cells import CELLS

CALLS = int(os.environ.get("XLSTM_FUSED_DRAWS", 1000))

# The fields of csrc/params.h, in its order.
SIZES, STRIDES, OFFSETS = ("T", "B", "P"), ("time_stride", "batch_stride"), ("time_offset", "batch_offset", "length")
PROBLEM = (*SIZES, *STRIDES, *OFFSETS, "K", "N", "D", "reverse", "reset_per_row", "weight_hh", "h0", "s0", "reset",
           "reset_h", "reset_s", "h_mask")
ARRAYS = {"forward": ("wx", "output", "h_n", "s_n", "pre", "states"),
          "backward": ("pre", "states", "output", "d_output", "d_h_n", "d_s_n", "d_pre", "d_states", "dpre", "dh0",
                       "ds0", "dreset_h", "dreset_s")}
INPUT = ("I", "x", "weight_ih", "bias")
NUMBERS = (*SIZES, *STRIDES, "K", "N", "D")
NEEDED = {"forward": ("weight_hh", "wx", "output", "h_n", "x", "weight_ih"),
          "backward": ("weight_hh", "pre", "output", "dpre", "dh0")}

NO_NUMBER = (None, "2", b"2", 1.5, float("nan"), [1], (), 2**64, -2**64, 10**30)
NO_SIZE = (-1, -2**31, -2**63, 2**48, 2**62, 2**63 - 1, *NO_NUMBER)
NO_ADDRESS = (-1, *NO_NUMBER)
NO_PLAN = ((0, 0, 0), (-1, 1, 1), (1, 1, 0), (2**40, 1, 1), (10**6, 1, 1), (2**62, 2**62, 1), (1, 1, 2**62), (1, 2),
           (1, 2, 3, 4), "1", 5)
WRONG = {"cell": ("", "rnn", None, 3), "dtype": ("", "int8", None, torch.float32), "isa": ("mmx", None, 3),
         "threads": (0, -1, 2**31, -2**40, None, 1.5, "2"), "plan": NO_PLAN, "problem": (None, [], 7),
         "arrays": (None, [], 7), "input": (None, [], 7)}

# Room for any array of a draw, whose rows are at most 9 and units 2 * 2 * 9; and where its rows lie.
MEMORY = {name: torch.zeros(1 << 14, dtype=torch.float64) for name in {*PROBLEM, *ARRAYS["forward"],
                                                                        *ARRAYS["backward"], *INPUT}}
PLACES = {name: torch.zeros(16, dtype=torch.int64) for name in OFFSETS}


@st.composite
def calls(draw):
    """``(name of the function, its arguments, whether it must refuse)``."""
    def some(*values):
        return draw(st.sampled_from(values))

    function, cell = some(*ARRAYS), some(*CELLS)
    T, B = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    values = dict(T=T, B=B, P=T * B, time_stride=B, batch_stride=1, K=some(1, 2), N=some(1, 2), D=some(1, 5, 9),
                  reverse=some(0, 1), reset_per_row=some(0, 1))
    for name in OFFSETS:
        values[name] = some(0, PLACES[name].data_ptr())
    PLACES["time_offset"][:T], PLACES["batch_offset"][:B] = B * torch.arange(T), torch.arange(B)
    PLACES["length"][:B] = torch.tensor([draw(st.integers(-1, T + 1)) for _ in range(B)])
    problem = [values.get(name, MEMORY[name].data_ptr()) for name in PROBLEM]
    arrays = [MEMORY[name].data_ptr() for name in ARRAYS[function]]
    dtype = some("float32", "float64", "bfloat16", "float16")
    # Kernels of float32 alone take an input; there is no wx then.
    features = some(0, 4) if function == "forward" and dtype == "float32" else 0
    input = [features, *(MEMORY[name].data_ptr() for name in INPUT[1:])]
    arguments = dict(cell=cell, dtype=dtype, isa=some("", *cpu._cpu.isas()),
                     threads=some(1, 2, 2**31 - 1), plan=some(None, None, (1, 1, 1)), problem=tuple(problem),
                     arrays=tuple(arrays))
    kind = some("right", "number", "number", "number", "address", "address", "null", "argument", "length")
    if function == "forward" and kind == "number" and some(False, True):
        input[0] = some(*NO_SIZE, *([4] if dtype != "float32" else []))
    elif kind == "number":
        name = some(*NUMBERS)
        # Strides are not looked at where offsets are given.
        if name in STRIDES:
            problem[5:7] = 0, 0
        problem[PROBLEM.index(name)] = draw(st.sampled_from(NO_SIZE))
        if name in STRIDES and (T, B)[STRIDES.index(name)] == 1 and problem[PROBLEM.index(name)] in NO_SIZE[3:6]:
            kind = "right"  # of one step or sequence
    elif kind in ("address", "null"):
        fields = (problem, PROBLEM) if kind == "address" and some(False, True) else (arrays, ARRAYS[function])
        if features and some(False, True):
            fields = input, INPUT
        names = [name for name in fields[1] if name in MEMORY and name not in values or name in OFFSETS]
        if kind == "null":
            names = [name for name in NEEDED[function] if name in names and not (features and name == "wx")]
        name = some(*names)
        fields[0][fields[1].index(name)] = 0 if kind == "null" else draw(st.sampled_from(NO_ADDRESS))
    elif kind == "length":
        where = some(problem, arrays, *([input] if function == "forward" else []))
        where[:] = some(where[:-1], [*where, 0], [], where * 2)
    arguments |= {"problem": tuple(problem), "arrays": tuple(arrays)}
    if function == "forward":
        arguments["input"] = tuple(input)
    if kind == "argument":
        name = some(*(name for name in WRONG if name in arguments))
        arguments[name] = draw(st.sampled_from(WRONG[name]))
    return function, arguments, kind != "right"


@st.composite
def plans(draw):
    """The arguments of ``plan``, one of them wrong, and huge ones that are not."""
    sizes = dict(threads=2, heads=2, B=3, T=4, D=5)
    name = draw(st.sampled_from(sorted(sizes)))
    return dict(cell="lstm", dtype="float32", isa="") | sizes | {name: draw(st.sampled_from((0, *NO_SIZE)))}


@st.composite
def products(draw):
    """``(arguments of product, whether it must refuse)``: right ones, or one of them wrong."""
    def some(*values):
        return draw(st.sampled_from(values))

    M, N, K = (draw(st.integers(1, 90)) for _ in range(3))
    address = MEMORY["wx"].data_ptr()
    sides = [some(True, False), some(True, False)]
    factors = [[address, (K if side else across) + some(0, 1), side] for side, across in zip(sides, (M, N))]
    arguments = dict(isa=some("", *cpu._cpu.isas()), threads=some(1, 2, 2**31 - 1), sizes=[M, N, K], a=factors[0],
                     b=factors[1], c=address)
    kind = some("right", "size", "factor", "argument", "length")
    if kind == "size":
        arguments["sizes"][some(0, 1, 2)] = draw(st.sampled_from((0, *NO_SIZE)))
    elif kind == "factor":
        factor, field = arguments[some("a", "b")], some(0, 1)
        factor[field] = draw(st.sampled_from((0, *NO_ADDRESS) if field == 0 else (0, *NO_SIZE)))
    elif kind == "argument":
        name = some("isa", "threads", "c", "a", "b", "sizes")
        arguments[name] = draw(st.sampled_from(WRONG[name] if name in WRONG else (0, *NO_ADDRESS)))
    elif kind == "length":
        arguments[some("sizes", "a", "b")].pop()
    for name in ("sizes", "a", "b"):
        if isinstance(arguments[name], list):
            arguments[name] = tuple(arguments[name])
    return arguments, kind != "right"


REFUSALS = (TypeError, ValueError, RuntimeError, OverflowError, MemoryError)


def main(examples):
    options = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))

    @options
    @given(calls())
    def call(drawn):
        function, arguments, must_refuse = drawn
        # The last line is the call that crashed, if one does.
        print(function, arguments, flush=True)
        try:
            getattr(cpu._cpu, function)(**arguments)
        except REFUSALS:
            assert must_refuse
        else:
            assert not must_refuse

    @options
    @given(plans())
    def plan(arguments):
        print("plan", arguments, flush=True)
        try:
            found = cpu._cpu.plan(**arguments)
        except REFUSALS:
            return
        assert found["threads"] >= 1 and found["tiles"] >= 1 and found["threads"] % found["team"] == 0

    @options
    @given(products())
    def product(drawn):
        arguments, must_refuse = drawn
        print("product", arguments, flush=True)
        try:
            cpu._cpu.product(**arguments)
        except REFUSALS:
            assert must_refuse
        else:
            assert not must_refuse

    call()
    plan()
    product()
    print("no crash")


@pytest.mark.skipif(not backends()["cpu"].ready, reason="the cpu backend is not built")
def test_hostile_arguments_are_refused():
    # The package that this process has imported.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-X", "faulthandler", __file__, str(CALLS)], env=environment,
                          capture_output=True, text=True)
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0 and last == ["no crash"], f"{done.returncode}, {last}\n{done.stderr[-3000:]}"


if __name__ == "__main__":
    main(int(sys.argv[1]))
