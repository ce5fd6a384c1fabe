"""Build of the compiled backends.

Everything declarative is in pyproject.toml. This file compiles ``csrc`` without torch: the extensions take raw
pointers, so one build serves every torch version and ``pip install`` needs neither ``--no-build-isolation`` nor torch
in the build environment. A backend that cannot be built never fails the install: the reason, in words, goes to
``xlstm_fused/_build.json`` and from there into the table of ``xlstm_fused.backends()``.

Environment: CXX, CXXFLAGS and LDFLAGS are respected (the latter two are appended), and CUDACXX or CUDA_HOME for nvcc.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGE = "xlstm_fused"
CXX_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra")
OPENMP = ("-fopenmp",)
# The sources compiled once for each instruction set, and the flags of each set; the others are compiled once, for any
# processor. Which set runs is decided when the library is loaded.
PER_ISA = ("csrc/cpu/kernels.cpp",)
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c")
ISA_FLAGS = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": AVX512,
    "avx512bf16": (*AVX512, "-mavx512bf16"),
    "avx512amx": (*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
}
# The GPUs that each exchange of csrc/cuda/plan.h is compiled for: Ampere and Ada, Hopper, Blackwell of data centres.
# The PTX is that of the first of them, which saves much of the compiler's work for the others.
CUDA_ARCHS = {"alone": ("80", "90", "100"), "cluster": ("90", "100"), "grid": ("80", "90", "100")}
# The kinds of numbers of csrc/cuda/launch.h.
CUDA_KINDS = ("bfloat16", "float16", "float32", "tf32")
NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden")


class Unavailable(Exception):
    """An extension cannot be built; the message says why, for users."""


class Unit(NamedTuple):
    """One compilation: ``source`` to ``object``, both relative to the project."""

    source: str
    object: Path
    flags: tuple[str, ...]
    compiler: tuple[str, ...]


class Plan(NamedTuple):
    """What makes one extension: the command of its link, its compilations and the flags of the link."""

    compiler: tuple[str, ...]
    units: list[Unit]
    link_flags: tuple[str, ...]


def cpu_plan() -> Plan:
    """The extension ``_cpu``: csrc/cpu, threaded by OpenMP where the compiler has it."""
    compiler = find_compiler()
    openmp = OPENMP if accepts(compiler, OPENMP) else ()
    common = (*binding_flags(), *openmp)
    isas = [isa for isa, flags in ISA_FLAGS.items() if not flags or is_x86_64(compiler) and accepts(compiler, flags)]
    have = tuple(f"-DXLSTM_FUSED_HAVE_{isa.upper()}=1" for isa in isas)
    units = []
    for source in sorted(Path("csrc/cpu").glob("*.cpp")):
        if source.as_posix() in PER_ISA:
            units += [Unit(source.as_posix(), variant_folder() / f"cpu/{source.stem}-{isa}.o",
                           (*common, *ISA_FLAGS[isa], f"-DXLSTM_FUSED_ISA={isa}"), compiler) for isa in isas]
        else:
            units.append(Unit(source.as_posix(), variant_folder() / f"cpu/{source.stem}.o", (*common, *have), compiler))
    if not units:
        raise Unavailable("csrc/cpu has no sources")
    return Plan(compiler, units, (*openmp, *shlex.split(os.environ.get("LDFLAGS", ""))))


def cuda_plan() -> Plan:
    """The extension ``_cuda``: csrc/cuda, its kernels for the GPUs in CUDA_ARCHS that nvcc knows.

    The CUDA runtime is linked in, and finds the driver when it is first called: the extension loads without one.
    """
    if not list(Path("csrc/cuda").glob("*.cu")):
        raise Unavailable("csrc/cuda has no sources")
    compiler, nvcc = find_compiler(), find_nvcc()
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    archs = {exchange: [arch for arch in names if f"sm_{arch}" in listed] for exchange, names in CUDA_ARCHS.items()}
    if not all(archs.values()):
        raise Unavailable(f"{nvcc} compiles for none of the GPUs sm_{', sm_'.join(CUDA_ARCHS['cluster'])}")
    device = (*NVCC_FLAGS, "-Icsrc")
    # nvcc is given no CXXFLAGS: whatever they are, its objects are the same.
    units = [Unit("csrc/cuda/bindings.cpp", variant_folder() / "cuda/bindings.o",
                  (*binding_flags(), f'-DXLSTM_FUSED_ARCHS="{" ".join(archs["alone"])}"'), compiler),
             Unit("csrc/cuda/launch.cu", build_folder() / "cuda/launch.o", device, (nvcc,)),
             Unit("csrc/cuda/steps.cu", build_folder() / "cuda/steps.o", (*device, *gencode(archs["alone"])), (nvcc,))]
    units += [Unit("csrc/cuda/instances.cu", build_folder() / f"cuda/{name}-{kind}-{exchange}.o",
                   (*device, *gencode(archs[exchange]), f"-DXLSTM_FUSED_PASS={name}", f"-DXLSTM_FUSED_KIND={kind}",
                    f"-DXLSTM_FUSED_EXCHANGE={exchange}"), (nvcc,))
              for exchange in reversed(CUDA_ARCHS) for name in ("bwd", "fwd") for kind in CUDA_KINDS]
    # nvcc links too: it knows where its runtime lies.
    link = ("-cudart=static", "-forward-unknown-to-host-compiler", "-Xlinker=--exclude-libs,ALL",
            *shlex.split(os.environ.get("LDFLAGS", "")))
    return Plan((nvcc,), units, link)


def gencode(archs: list[str]) -> list[str]:
    """nvcc's flags for code of each of ``archs`` from PTX of the first."""
    return [f"-gencode=arch=compute_{archs[0]},code=[{','.join(f'sm_{arch}' for arch in archs)}]"]


# Extension name -> its plan; a further backend is one line here.
PLANS = {"cpu": cpu_plan, "cuda": cuda_plan}


def binding_flags() -> tuple[str, ...]:
    """What a source that may include pybind11 is compiled with."""
    return (*CXX_FLAGS, "-Icsrc", "-isystem", str(pybind11_include()), "-isystem", sysconfig.get_path("include"),
            *shlex.split(os.environ.get("CXXFLAGS", "")))


def find_nvcc() -> str:
    """Path of CUDA's compiler: $CUDACXX, $CUDA_HOME/bin/nvcc, or nvcc on PATH."""
    home = os.environ.get("CUDA_HOME", "")
    named = os.environ.get("CUDACXX", "") or (str(Path(home, "bin", "nvcc")) if home else "nvcc")
    found = shutil.which(named)
    if found is None:
        raise Unavailable(f"{named}, the compiler of CUDA, was not found when the package was installed")
    return found


def find_compiler() -> tuple[str, ...]:
    """The C++ compiler's command: $CXX, else the first of the usual names on PATH."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen and shutil.which(chosen[0]) is None:
        raise Unavailable(f"the C++ compiler that CXX names, {chosen[0]}, is not there")
    command = chosen or [name for name in ("c++", "g++", "clang++") if shutil.which(name)][:1]
    if not command:
        raise Unavailable("no C++ compiler (c++, g++ or clang++) was found when the package was installed")
    return tuple(command)


def accepts(compiler: tuple[str, ...], flags: tuple[str, ...]) -> bool:
    """Whether the compiler builds and links a small shared library with ``flags``."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("int probe() { return 0; }\n")
        command = [*compiler, *flags, *shared_flags(), str(source), "-o", str(Path(folder, "probe.so"))]
        return subprocess.run(command, capture_output=True).returncode == 0


def is_x86_64(compiler: tuple[str, ...]) -> bool:
    """Whether the compiler builds for x86-64, which is not always the processor that it runs on."""
    target = subprocess.run([*compiler, "-dumpmachine"], capture_output=True, text=True).stdout
    return target.startswith(("x86_64", "amd64"))


def shared_flags() -> tuple[str, ...]:
    darwin = sys.platform == "darwin"
    return ("-fPIC", "-bundle", "-undefined", "dynamic_lookup") if darwin else ("-fPIC", "-shared")


def build_folder() -> Path:
    """Where objects are kept between builds, by platform and Python."""
    return Path("build", f"ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}")


def variant_folder() -> Path:
    """The build folder, or where a compiler or flags are chosen, a folder in it for what depends on them."""
    chosen = "\n".join(os.environ.get(name, "") for name in ("CXX", "CXXFLAGS", "LDFLAGS"))
    return build_folder() / f"{zlib.crc32(chosen.encode()):08x}" if chosen.strip() else build_folder()


def pybind11_include() -> Path:
    """A copy of pybind11's headers in the build folder.

    An isolated build sees pybind11 in another temporary folder every time, with new file times: compiling against
    that would compile everything again.
    """
    import pybind11

    copy = build_folder() / f"pybind11-{pybind11.__version__}"
    if not copy.exists():
        shutil.copytree(pybind11.get_include(), copy.with_suffix(".part"), dirs_exist_ok=True)
        copy.with_suffix(".part").rename(copy)
    return copy


def find_ninja() -> str:
    """Path of ninja: that of the ninja package, or on PATH.

    The package first, which is what a build of the wheel has: another version cannot read what is kept of a build, and
    would compile everything again.
    """
    try:
        import ninja
    except ImportError:
        found = shutil.which("ninja")
        if found is None:
            raise Unavailable("ninja was not found when the package was installed") from None
        return found
    return str(Path(ninja.BIN_DIR, "ninja"))


def ninja_text(plan: Plan, library: Path) -> str:
    """The ninja file that builds ``library`` by ``plan``, its paths relative to the project."""
    linker = escape(shlex.join(plan.compiler))
    link = escape(shlex.join((*shared_flags(), *plan.link_flags)))
    lines = [
        f"builddir = {escape_path(build_folder())}",
        "rule compile",
        "  command = $compiler $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {linker} $in -o $out {link}",
    ]
    objects = []
    for unit in plan.units:
        objects.append(escape_path(unit.object))
        lines += [f"build {objects[-1]}: compile {escape_path(unit.source)}",
                  f"  flags = {escape(shlex.join(unit.flags))}",
                  f"  compiler = {escape(shlex.join(unit.compiler))}"]
    lines.append(f"build {escape_path(library)}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    return text.replace("$", "$$")


def escape_path(path: str | Path) -> str:
    return escape(Path(path).as_posix()).replace(" ", "$ ").replace(":", "$:")


def run_ninja(name: str, plan: Plan, library: Path) -> None:
    """Build ``library``; what ninja and the compiler say is shown, and kept in the build folder."""
    folder = variant_folder()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.ninja"
    file.write_text(ninja_text(plan, library))
    done = subprocess.run([find_ninja(), "-f", str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    (folder / f"{name}.log").write_text(done.stdout)
    if done.returncode:
        errors = [line.strip() for line in done.stdout.splitlines() if "error" in line.lower()]
        first = errors[0] if errors else f"ninja exited with status {done.returncode}"
        raise Unavailable(f"it did not compile when the package was installed: {first}")


def backend_name(ext: Extension) -> str:
    """``cpu`` for the extension ``xlstm_fused._cpu``."""
    return ext.name.rpartition("._")[2]


class NinjaBuildExt(build_ext):
    """build_ext by ninja: parallel, only what changed, and never an error for a missing compiler."""

    def run(self) -> None:
        self.reasons: dict[str, str | None] = {}
        super().run()
        for folder in [Path(self.build_lib, PACKAGE)] + ([Path(PACKAGE)] if self.inplace else []):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_build.json").write_text(json.dumps(self.reasons, indent=2) + "\n")
            for ext in self.extensions:
                if self.reasons[backend_name(ext)] is not None:
                    # A library left by an earlier build would not match the sources.
                    (folder / Path(self.get_ext_filename(ext.name)).name).unlink(missing_ok=True)

    def build_extension(self, ext: Extension) -> None:
        name = backend_name(ext)
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            built = variant_folder() / target.name
            run_ninja(name, PLANS[name](), built)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(built, target)
            self.reasons[name] = None
        except Unavailable as error:
            self.reasons[name] = str(error)
            print(f"WARNING: xlstm_fused is installed without its {name} backend: {error}", file=sys.stderr, flush=True)

    def get_outputs(self) -> list[str]:
        built = [path for path in super().get_outputs() if os.path.exists(path)]
        return [*built, str(Path(self.build_lib, PACKAGE, "_build.json"))]


# The extensions are optional for setuptools too, so it does not look for a library that was not built.
setup(
    ext_modules=[Extension(f"{PACKAGE}._{name}", sources=[], optional=True) for name in PLANS],
    cmdclass={"build_ext": NinjaBuildExt},
)
