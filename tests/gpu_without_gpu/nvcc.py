"""CUDA sources compiled by nvcc without a GPU: their PTX for the interpreter, and what ptxas says they need."""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from .ptx import Kernel, Struct

__all__ = ["Resources", "Struct", "Sources", "nvcc_path", "probe"]


def nvcc_path():
    """Where nvcc is, or None: on the path, in ``CUDA_HOME`` or in its usual place."""
    for place in (shutil.which("nvcc"), Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin/nvcc"):
        if place and Path(place).exists():
            return str(place)
    return None


class Resources(NamedTuple):
    """What a compiled kernel takes of a GPU; sizes in bytes, ``shared`` without the dynamic part."""

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


class Sources:
    """A .cu file (a path, or its text) with its options; ``cache`` keeps what was compiled, by content."""

    def __init__(self, source, arch, include=(), defines=(), flags=(), cache=None):
        self.text = Path(source).read_text() if isinstance(source, Path) else source
        self.arch = arch
        self.include = [Path(source).parent] * isinstance(source, Path) + [Path(each) for each in include]
        self.options = [f"-arch={arch}", "-std=c++17", *(f"-I{each}" for each in self.include),
                        *(f"-D{each}" for each in defines), *flags]
        self.cache = Path(cache or Path(tempfile.gettempdir()) / f"xlstm_fused_nvcc_{os.getuid()}")
        self.cache.mkdir(parents=True, exist_ok=True)
        self._kernels = {}

    def _key(self):
        digest = hashlib.sha256(subprocess.run([nvcc_path(), "--version"], capture_output=True).stdout)
        digest.update(repr((self.text, self.options)).encode())
        for directory in self.include:
            for path in sorted(p for p in directory.rglob("*") if p.suffix in (".h", ".cuh", ".cu")):
                digest.update(str(path.relative_to(directory)).encode() + path.read_bytes())
        return digest.hexdigest()[:32]

    def _compiled(self, kind):
        """The PTX, or the report of ptxas, as text."""
        if hasattr(self, "_" + kind):
            return getattr(self, "_" + kind)
        path = self.cache / f"{self._key()}.{kind}"
        if not path.exists():
            with tempfile.TemporaryDirectory() as scratch:
                source, output = Path(scratch) / "kernel.cu", Path(scratch) / "kernel.out"
                source.write_text(self.text)
                what = ["-ptx"] if kind == "ptx" else ["-cubin", "-Xptxas=-v"]
                done = subprocess.run([nvcc_path(), *what, *self.options, str(source), "-o", str(output)],
                                      capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"nvcc fails:\n{done.stderr}")
                text = output.read_text() if kind == "ptx" else done.stdout + done.stderr
            # Other processes may compile the same: the last to finish wins, with the same text.
            half = path.with_suffix(f".{os.getpid()}")
            half.write_text(text)
            half.replace(path)
        setattr(self, "_" + kind, path.read_text())
        return getattr(self, "_" + kind)

    def ptx(self):
        return self._compiled("ptx")

    def names(self):
        """Mangled names of the kernels."""
        return re.findall(r"\.entry\s+([$\w]+)", self.ptx())

    def _name(self, part):
        names = [name for name in self.names() if name == part] or [name for name in self.names() if part in name]
        if len(names) != 1:
            raise KeyError(f"{part!r} names {len(names)} of the kernels {self.names()}")
        return names[0]

    def kernel(self, part="", ptx=None):
        """The interpreted kernel whose mangled name contains ``part``; of changed ``ptx`` if that is given."""
        if ptx is not None:
            return Kernel(ptx, self._name(part))
        name = self._name(part)
        if name not in self._kernels:
            self._kernels[name] = Kernel(self.ptx(), name)
        return self._kernels[name]

    def resources(self):
        """``{mangled name: Resources}``."""
        found = {}
        for m in re.finditer(r"Compiling entry function '([^']+)'(.*?)(?=Compiling entry function|\Z)",
                             self._compiled("report"), re.S):
            name, text = m.groups()
            # Functions that are not inlined are listed beside the kernel that calls them.
            frames = {each[0]: tuple(map(int, each[1:])) for each in re.findall(
                r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill "
                r"loads", text)}
            shared = re.search(r"(\d+) bytes smem", text)
            found[name] = Resources(int(re.search(r"Used (\d+) registers", text)[1]), int(shared[1]) if shared else 0,
                                    *map(sum, zip(*frames.values())))
        return found


@functools.cache
def probe(name, arch="sm_90a"):
    """The compiled ``probes/<name>.cu``."""
    return Sources(Path(__file__).parent / f"probes/{name}.cu", arch)
