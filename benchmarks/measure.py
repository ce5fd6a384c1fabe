"""Clocks: interleaved blocks of runs, memory, the rate of a matrix product, kernel names."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.utils.benchmark import Timer

from .problem import AUTOCAST, DTYPES


@dataclass(frozen=True)
class Effort:
    """How long each contestant runs: about ``seconds``, in ``rounds`` blocks, of a slow one at least 3."""

    seconds: float
    rounds: int


class CpuClock:
    def __init__(self, threads: int):
        self.threads = threads

    def estimate(self, run: Callable) -> float:
        """Seconds of one call, roughly: the least of three, unless one takes long."""
        least = float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            run()
            least = min(least, time.perf_counter() - begin)
            if least > 0.3:
                break
        return least

    def block(self, run: Callable, calls: int, seconds: float) -> list[float]:
        """Milliseconds of a call: the mean of a block, one number, since a clock around one short call is no better.
        The timer runs a few calls before, so that the caches hold this contestant's data and not the last one's."""
        return [1e3 * Timer("run()", globals={"run": run}, num_threads=self.threads).timeit(calls).median]


class CudaClock:
    """Times between CUDA events, with the L2 cache cleared before each run: triton's do_bench."""

    def estimate(self, run: Callable) -> float:
        return self.block(run, 1, 0.01)[0] / 1e3

    def block(self, run: Callable, calls: int, seconds: float) -> list[float]:
        from triton.testing import do_bench

        return do_bench(run, warmup=max(1, 250 * seconds), rep=max(1, 1000 * seconds), return_mode="all")


@dataclass
class Race:
    """Milliseconds per call of each contestant, and of each pair (rival, ours) the ratios of adjacent blocks."""

    times: dict[Hashable, list[float]]
    calls: dict[Hashable, int]
    ratios: dict[tuple, list[float]]


def race(clock, runs: dict[Hashable, Callable], pairs: list[tuple], effort: Effort,
         notify: Callable[[Hashable], None] = lambda key: None) -> Race:
    """Run all in turns, rival, ours, rival, ours: what disturbs the machine meets both sides of a pair.

    ``notify(key)`` is called before each block.
    """
    estimate = {key: clock.estimate(run) for key, run in runs.items()}
    share = effort.seconds / effort.rounds
    calls = {key: max(1, round(share / max(each, 1e-9))) for key, each in estimate.items()}
    rounds = {key: min(effort.rounds, max(3, int(effort.seconds / max(each, 1e-9))))
              for key, each in estimate.items()}
    result = Race({key: [] for key in runs}, calls, {pair: [] for pair in pairs})

    def block(key):
        notify(key)
        times = clock.block(runs[key], calls[key], share)
        result.times[key] += times
        return median(times)

    alone = set(runs) - {key for pair in pairs for key in pair}
    for number in range(effort.rounds):
        for key in alone:
            if number < rounds[key]:
                block(key)
        for rival, ours in pairs:
            if number < min(rounds[rival], rounds[ours]):
                result.ratios[rival, ours].append(block(rival) / block(ours))
    return result


def graphed(run: Callable) -> Callable:
    """A replay of ``run`` as a CUDA graph; raises where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def gemm_gflops(device: str, precision: str, threads: int) -> float:
    """The rate of a large square product in the precision, as torch runs it by default."""
    dtype = AUTOCAST if precision == "autocast" else DTYPES[precision]
    size = 8192 if device == "cuda" else 1024 if dtype == torch.float32 else 512
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind(0)
    if device == "cuda":
        seconds = median(CudaClock().block(lambda: torch.mm(a, b), 1, 0.03)) / 1e3
    else:
        timer = Timer("torch.mm(a, b)", globals={"torch": torch, "a": a, "b": b}, num_threads=threads)
        seconds = timer.blocked_autorange(min_run_time=0.1).median
    return 2 * size**3 / seconds / 1e9


def copy_gbs(device: str, threads: int) -> float:
    """The rate of a large copy, 1e9 bytes per second, those that are read and those that are written together."""
    source = torch.ones(2**26 if device == "cuda" else 2**23, device=device)
    target = torch.empty_like(source)
    if device == "cuda":
        seconds = median(CudaClock().block(lambda: target.copy_(source), 1, 0.03)) / 1e3
    else:
        timer = Timer("target.copy_(source)", globals={"target": target, "source": source}, num_threads=threads)
        seconds = timer.blocked_autorange(min_run_time=0.1).median
    return 2 * source.numel() * source.element_size() / seconds / 1e9


def peak_bytes(device: str, run: Callable) -> int | None:
    """How far memory grows in one call. On the CPU this is the resident set's, and known on Linux only."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        # What the allocator kept of earlier calls would hide what this one needs.
        ctypes.CDLL(None).malloc_trim(0)
        # Writing 5 makes the current resident set the new peak.
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


def kernels(run: Callable, most: int = 6) -> list[str]:
    """The GPU kernels of one call that take longest, each with its share of the time and its number of launches."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    rows = [row for row in profiler.key_averages() if row.self_device_time_total > 0]
    total = sum(row.self_device_time_total for row in rows)
    rows.sort(key=lambda row: -row.self_device_time_total)
    return [f"{row.self_device_time_total / total:.0%} {row.count}x {row.key[:120]}" for row in rows[:most]]
