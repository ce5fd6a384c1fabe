"""``make matrix``: the package as users get it, installed into fresh environments of several kinds and tested there.

``nox --list`` shows the cells, ``nox --session NAME`` runs one. Each installs what ``sdist`` made, prints
``python -m xlstm_fused info``, and runs a part of the tests, copied from the source tree to test what is installed. A
Python that this machine does not have is skipped. Torch comes from wherever pip is set to look for it: several GB for
each cell, where it finds builds for CUDA only.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False

ROOT = Path(__file__).parent
DIST = ROOT / "dist"
# The oldest torch that pyproject.toml allows, and the one that the Makefile installs.
OLDEST = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
USUAL = re.search(r"^TORCH \?= torch==([\d.]+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
# Builds of the GPU kernels take minutes; one cell makes them.
WITHOUT_NVCC = {"CUDACXX": "no-such-compiler"}
TESTS = ("test_module.py", "test_ops.py", "test_options.py", "test_failure.py", "test_transforms.py")


def distribution(pattern: str) -> str:
    return str(max(DIST.glob(pattern), key=lambda path: path.stat().st_mtime))


def check(session: nox.Session, package: str, torch: str, *others: str, tests: tuple[str, ...] = TESTS,
          environment: dict[str, str] = WITHOUT_NVCC) -> None:
    """Install a package beside a torch and other packages, and test it, not the source tree."""
    session.install(torch, "pytest", *others)
    # pip keeps what it builds of an sdist, with a compiler or without, and would take that.
    session.install("--no-cache-dir", package, env=environment)
    folder = Path(session.create_tmp())
    shutil.copytree(ROOT / "tests", folder / "tests", dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    session.chdir(folder)
    session.run("python", "-m", "xlstm_fused", "info")
    # Warnings are errors in these tests, but for torch's own: at its import, that numpy is not there; in forward mode,
    # of what it uses itself.
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore:Failed to initialize NumPy",
                "-W", "ignore:`torch.jit.script` is deprecated", *(f"tests/{name}" for name in tests))


@nox.session
def sdist(session: nox.Session) -> None:
    """Make the sdist, and check what PyPI checks."""
    session.install("build", "twine")
    shutil.rmtree(DIST, ignore_errors=True)
    session.run("python", "-m", "build", "--sdist", "--outdir", str(DIST))
    session.run("twine", "check", "--strict", distribution("*.tar.gz"))


@nox.session(python=("3.10", "3.11", "3.12", "3.13"), requires=["sdist"])
def wheel(session: nox.Session) -> None:
    """The wheel of each Python, with nothing optional: neither triton nor numpy nor matplotlib."""
    session.install("twine", "auditwheel")
    session.run("pip", "wheel", "--no-cache-dir", "--no-deps", "--wheel-dir", str(DIST), distribution("*.tar.gz"),
                env=WITHOUT_NVCC)
    made = distribution("*.whl")
    session.run("twine", "check", "--strict", made)
    session.run("auditwheel", "show", made)
    check(session, made, f"torch=={USUAL}")


@nox.session(requires=["sdist"])
def oldest(session: nox.Session) -> None:
    """The sdist beside the oldest torch."""
    check(session, distribution("*.tar.gz"), f"torch=={OLDEST}")


@nox.session(requires=["sdist"])
def newest(session: nox.Session) -> None:
    """The sdist beside the newest torch that pip finds."""
    check(session, distribution("*.tar.gz"), "torch")


@nox.session(requires=["sdist"])
def extras(session: nox.Session) -> None:
    """The sdist beside all that is optional, nvcc too if it is there, with the tests of that."""
    check(session, distribution("*.tar.gz"), f"torch=={USUAL}", "triton", "numpy", "matplotlib", "packaging",
          tests=(*TESTS, "test_triton.py", "test_viz.py"), environment={})


@nox.session(requires=["sdist"])
def without_compiler(session: nox.Session) -> None:
    """The sdist where there is no C++ compiler: the install goes well, and says what is missing."""
    check(session, distribution("*.tar.gz"), f"torch=={USUAL}", environment={"CXX": "no-such-compiler"})
