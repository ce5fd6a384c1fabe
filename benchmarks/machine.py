"""What a result needs to be trusted: the code, the versions and the device it came from."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("xlstm-fused", "torch", "triton", "flashrnn", "xlstm", "torchrl", "haste_pytorch", "numpy")
MEASURED = ("xlstm_fused", "csrc", "setup.py")


def git(*arguments: str) -> str | None:
    """The output of a git command in this repository; None without git or outside of a repository."""
    try:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


@functools.cache
def source() -> str:
    """A hash of the measured code, which names it even where there is no git, or changes that are not committed."""
    digest = hashlib.sha256()
    for top in MEASURED:
        path = ROOT / top
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def code() -> dict:
    """The fields ``commit``, ``dirty`` and ``source`` of a record."""
    status = git("status", "--porcelain", "--", *MEASURED, "benchmarks", ":(exclude)benchmarks/results")
    return {"commit": git("rev-parse", "--short=12", "HEAD"), "dirty": None if status is None else bool(status),
            "source": source()}


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def versions(device_type: str) -> dict:
    found = {"python": platform.python_version()}
    found |= {package: number for package in PACKAGES if (number := version(package))}
    # The local part of torch's version (+cpu, +cu130) is not in its metadata everywhere.
    found["torch"] = torch.__version__
    if device_type == "cuda":
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
        if driver := smi("driver_version"):
            found["driver"] = driver
    else:
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
    return found


@functools.cache
def device_name(device_type: str) -> str:
    """The model of the GPU, or of the processor with its instructions as torch calls them and its usable cores."""
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model} ({torch.backends.cpu.get_cpu_capability()}), {cores()} cores"


def smi(field: str) -> str | None:
    """What nvidia-smi says of a field of the current GPU; None without it."""
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", "-i",
             str(torch.cuda.current_device())]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def clocks(device_type: str) -> dict[str, float]:
    """MHz at this moment: of a GPU's processors and memory; of the CPU the mean over cores, where the system says."""
    if device_type == "cuda":
        found = {name: smi(f"clocks.{field}") for name, field in (("processors", "sm"), ("memory", "mem"))}
        return {name: float(value) for name, value in found.items() if value and value.isdigit()}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    rates = [float(line.split(":", 1)[1]) for line in lines if line.startswith("cpu MHz")]
    return {"processors": round(sum(rates) / len(rates), 1)} if rates else {}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
