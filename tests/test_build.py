import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = '#include <pybind11/pybind11.h>\nPYBIND11_MODULE(_cpu, m) { m.attr("answer") = 42; }\n'


def copy_build_files(folder):
    """What it takes to build, but for csrc, into ``folder``."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "xlstm_fused").mkdir()
    (folder / "xlstm_fused/__init__.py").touch()
    # setup.py must not import torch: here that would fail.
    (folder / "stub").mkdir()
    (folder / "stub/torch.py").write_text("raise AssertionError('setup.py imported torch')\n")
    return folder


@pytest.fixture
def project(tmp_path):
    """The build files with a small csrc, so that compiling takes seconds."""
    copy_build_files(tmp_path)
    (tmp_path / "csrc/cpu").mkdir(parents=True)
    (tmp_path / "csrc/cpu/bindings.cpp").write_text(SOURCE)
    return tmp_path


def build(project, backend="cpu", **environment):
    environment = {**os.environ, "PYTHONPATH": str(project / "stub"), **environment}
    done = subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=project, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((project / "xlstm_fused/_build.json").read_text())[backend], done.stdout + done.stderr


def test_builds_then_has_nothing_to_do_then_follows_a_change(project):
    reason, printed = build(project)
    assert reason is None and list((project / "xlstm_fused").glob("_cpu*.so"))
    _, printed = build(project)
    assert "ninja: no work to do." in printed
    (project / "csrc/cpu/bindings.cpp").write_text(SOURCE.replace("42", "oops"))
    reason, printed = build(project)
    assert "did not compile" in reason and "oops" in reason and "WARNING" in printed
    assert not list((project / "xlstm_fused").glob("_cpu*.so"))


def test_no_compiler_is_a_reason_not_an_error(project):
    environment = dict.fromkeys(("CXX", "CC"), "")
    reason, printed = build(project, PATH=str(project / "stub"), **environment)
    assert reason == "no C++ compiler (c++, g++ or clang++) was found when the package was installed"
    assert f"WARNING: xlstm_fused is installed without its cpu backend: {reason}" in printed


def test_no_nvcc_costs_the_cuda_backend_only(project):
    (project / "csrc/cuda").mkdir()
    (project / "csrc/cuda/launch.cu").touch()
    reason, printed = build(project, "cuda", CUDACXX="no-such-nvcc")
    assert reason == "no-such-nvcc, the compiler of CUDA, was not found when the package was installed"
    assert f"WARNING: xlstm_fused is installed without its cuda backend: {reason}" in printed
    assert json.loads((project / "xlstm_fused/_build.json").read_text())["cpu"] is None
    assert list((project / "xlstm_fused").glob("_cpu*.so"))
