"""The kernels with vectors of 64 bytes on any processor: AVX-512's tiling, tails and packing, its operations split."""

import importlib.util
import shutil

import pytest
import torch
from problems import Problem
from test_build import ROOT, build, copy_build_files
from test_cpu import through_cpu
from test_reference import through_autograd
from tolerances import assert_close

from xlstm_fused.backends import cpu
from xlstm_fused.cells import CELLS

pytestmark = pytest.mark.xdist_group("wide")  # one build, however many processes run the tests


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The extension built with vectors forced to 64 bytes; unoptimised, to compile fast."""
    project = copy_build_files(tmp_path_factory.mktemp("wide"))
    shutil.copytree(ROOT / "csrc", project / "csrc", ignore=shutil.ignore_patterns("cuda"))
    reason, printed = build(project, CXXFLAGS="-DXLSTM_FUSED_VECTOR_BYTES=64 -O1 -Wno-psabi")
    assert reason is None, printed
    library, = (project / "xlstm_fused").glob("_cpu*.so")
    spec = importlib.util.spec_from_file_location("wide._cpu", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built, cpu._cpu = cpu._cpu, module
    yield module
    cpu._cpu = built


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
@pytest.mark.parametrize("layout, reset, K, N, D", (("time-major", "none", 1, 1, 5), ("lengths", "per row", 2, 1, 37),
                                                    ("packed", "per sequence", 1, 2, 16),
                                                    ("one step", "zero", 1, 3, 70)))
def test_values_and_gradients(wide, cell, dtype, layout, reset, K, N, D):
    assert wide.plan(cell=cell, dtype="float32", isa="", threads=1, heads=1, B=1, T=1, D=D)["lanes"] == 16
    problem = Problem.random(cell, layout, K, N, D, reset=reset, masked=True, dtype=dtype)
    expected_values, expected = problem.to(torch.float64).run(through_autograd)
    for isa in wide.isas():
        cpu.forced_isa = isa
        values, gradients = problem.run(through_cpu)
        cpu.forced_isa = ""
        for name, value in expected_values.items():
            assert_close(values[name], value, f"{name} by {isa}")
        for name, gradient in expected.items():
            assert_close(gradients[name], gradient, f"gradient of {name} by {isa}")
