"""The CPU kernels on an emulated ARM processor: what NEON makes of the portable code, against the reference."""

import ctypes
import shutil
import struct
import subprocess

import pytest
import test_cpu_from_input
import torch
from inputs import two_steps, with_input
from problems import Problem
from test_build import ROOT
from test_cpu import assert_as_good_as_the_reference, assert_true, numbers_of_bfloat16

from xlstm_fused.backends import cpu
from xlstm_fused.cells import CELLS
from xlstm_fused.rows import Rows

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SYSROOT = "/usr/aarch64-linux-gnu"
pytestmark = [
    pytest.mark.xdist_group("neon"),
    pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
                       reason=f"needs {COMPILER} and {EMULATOR}: Debian's g++-aarch64-linux-gnu and qemu-user")]
REQUEST = struct.Struct("16s16s4q33q33q")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    built = tmp_path_factory.mktemp("neon") / "call"
    sources = [ROOT / "tests/neon/call.cpp",
               *(path for path in (ROOT / "csrc/cpu").glob("*.cpp") if path.name != "bindings.cpp")]
    subprocess.run([COMPILER, "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fopenmp",
                    f"-I{ROOT / 'csrc'}", "-DXLSTM_FUSED_ISA=portable", *map(str, sources), "-o", str(built)],
                   check=True)
    return built


class Emulated:
    """Stands in for the extension: each call runs in the program, whose arrays come back."""

    def __init__(self, program, plan):
        self.program, self.plan = program, plan

    def takes_input(self, dtype, isa, T, D, inputs):
        """There are no tiles."""
        return dtype == "float32" and inputs > 0

    def cells(self):
        return list(CELLS)

    def forward(self, *arguments):
        *others, _ = arguments  # nobody measures
        self._call(False, *others)

    def backward(self, *arguments):
        *others, _ = arguments
        self._call(True, *others)

    def _call(self, backward, cell, dtype, isa, threads, plan, problem, arrays, input=()):
        T, B, P, *_, K, N, D = problem[:11]
        storage, state = getattr(torch, dtype).itemsize, 8 if dtype == "float64" else 4
        G, others = len(CELLS[cell].gates), len(CELLS[cell].states) - 1
        gates, output, row_states = storage * P * K * G * N * D, storage * P * K * N * D, state * others * P * K * N * D
        h, s = storage * K * B * N * D, state * others * K * B * N * D
        resets = (output, row_states) if problem[12] else (h, s)
        sizes = [*[None] * 5, 8 * T, 8 * B, 8 * B, *[None] * 5, storage * K * G * N * D * D, h, s, P, *resets, h]
        if backward:
            sizes += [gates, row_states, output, output, h, s, gates, row_states, gates, h, s, *resets]
        else:
            weights = storage * K * G * N * D
            sizes += [gates, output, h, s, gates, row_states, None, storage * P * input[0], weights * input[0], weights]
        fields = [*problem, *arrays, *input]
        lengths = [-1 if size is None or address == 0 else size for size, address in zip(sizes, fields, strict=True)]
        rest = [0] * (33 - len(fields))
        numbers = [int(value) if size is None else 0 for size, value in zip(sizes, fields)]
        request = REQUEST.pack(cell.encode(), dtype.encode(), backward, *self.plan, *numbers, *rest, *lengths,
                               *[-1 for _ in rest])
        given = [ctypes.string_at(address, length) for address, length in zip(fields, lengths) if length > 0]
        answer = subprocess.run([EMULATOR, "-L", SYSROOT, str(self.program)], input=request + b"".join(given),
                                capture_output=True, check=True).stdout
        for address, length in zip(fields, lengths):
            if length > 0:
                ctypes.memmove(address, answer[:length], length)
                answer = answer[length:]
        assert not answer


@pytest.fixture(params=((1, 1, 1), (2, 2, 1)), ids=("one thread", "two threads"))
def emulated(request, program, monkeypatch):
    monkeypatch.setattr(cpu, "_cpu", Emulated(program, request.param))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
@pytest.mark.parametrize("layout, reset, K, N, D, masked", (
    ("time-major", "none", 1, 1, 9, False), ("lengths", "per row", 2, 1, 21, True),
    ("packed", "per sequence", 1, 2, 16, False), ("one step", "zero", 1, 3, 10, False)))
def test_values_and_gradients(cell, dtype, layout, reset, K, N, D, masked):
    problem = Problem.random(cell, layout, K, N, D, reset=reset, masked=masked, dtype=dtype)
    assert_true(problem)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_16_bit_is_as_good_as_the_reference(cell, dtype):
    problem = Problem.random(cell, "lengths", 2, 2, 13, dtype=dtype)
    assert_as_good_as_the_reference(problem)


@pytest.mark.usefixtures("emulated")
def test_a_matrix_kept_in_bfloat16():
    problem = numbers_of_bfloat16(Problem.random("lstm", "time-major", 1, 1, 23, dtype=torch.float32))
    assert_true(problem)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("bias", (False, True))
def test_an_input(bias):
    problem = with_input(Problem.random("slstm", Rows.dense(29, 5, False), 2, 1, 9, dtype=torch.float32), 7)
    if not bias:
        del problem.tensors["bias"]
    assert_true(problem, test_cpu_from_input.through_cpu, two_steps)
