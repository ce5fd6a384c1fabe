"""Where the time of one of our calls goes: its matrix products, its kernels and what happens in them, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from xlstm_fused.backends import cpu, load

from .cases import SUITES, Case, select
from .contestants import roster
from .measure import CpuClock
from .problem import Problem
from .runner import Options

INPUT, FORWARD, LAYER, BACKWARD, WEIGHTS, COPIES = (
    "input product", "recurrence kernel, forward", "recurrence kernel, forward, with the input product",
    "recurrence kernel, backward",
    "products for gradients (input, weights)", "copies, sums and other tensor operations")
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::matmul", "aten::linear")
KERNELS = {"inference": FORWARD, "forward": FORWARD, "inference_from_input": LAYER, "forward_from_input": LAYER,
           "backward": BACKWARD, "matmul": WEIGHTS}
PREFIX = "xlstm_fused::"


def part_of(names: list[str]) -> str:
    """The part that an operator belongs to, from its name and those of the operators around it, the outermost last."""
    for name in reversed(names):
        if name in PRODUCTS:
            return WEIGHTS if any("Backward" in outer for outer in names) else INPUT
    plain = (name.removeprefix(PREFIX) for name in reversed(names))
    return next((KERNELS[name] for name in plain if name in KERNELS), COPIES)


@contextmanager
def recorded(backend: ModuleType) -> Iterator[dict[str, torch.Tensor]]:
    """The backend's functions as events of the profile, as which the dispatcher records only some calls of them. Gives,
    for each kernel of the cpu backend, the seconds of its phases, summed over threads."""
    functions = {name: getattr(backend, name) for name in KERNELS if hasattr(backend, name)}
    phases: dict[str, torch.Tensor] = {}

    def record(name: str, function: Callable) -> Callable:
        def run(*arguments):
            if backend is cpu:
                cpu.seconds = phases.setdefault(KERNELS[name], torch.zeros(len(cpu._cpu.phases()), dtype=torch.float64))
            with record_function(PREFIX + name):
                return function(*arguments)
        return run

    try:
        for name, function in functions.items():
            setattr(backend, name, record(name, function))
        yield phases
    finally:
        cpu.seconds = None
        for name, function in functions.items():
            setattr(backend, name, function)


def split(events: Iterable, calls: int) -> dict[str, float]:
    """Milliseconds per call of each part, from a profile's events."""
    parts = dict.fromkeys((INPUT, FORWARD, LAYER, BACKWARD, WEIGHTS, COPIES), 0.0)
    for event in events:
        names, outer = [], event
        while outer is not None:
            names.append(outer.name)
            outer = outer.cpu_parent
        # Nodes of autograd and Python are no work of their own: what they cost is in the rest.
        if event.name.startswith(("aten::", PREFIX)):
            parts[part_of(names)] += event.self_cpu_time_total / 1e3 / calls
    return parts


def measure(case: Case, mode: str, precision: str,
            threads: int) -> tuple[float, dict[str, float], dict[str, dict[str, float]]] | None:
    """Milliseconds of a call without the profiler, of its parts with it, and of the phases of those that are kernels of
    the cpu backend, the mean over threads; None if no fused backend runs the case."""
    torch.set_num_threads(threads)
    ours = next((each for each in roster("cpu") if each.is_ours and each.reason(case, precision) is None), None)
    if ours is None:
        return None
    run = ours.build(Problem(case, "cpu"), precision).runner(mode)
    clock = CpuClock(threads)
    seconds = clock.estimate(run)
    calls = max(3, min(200, round(0.5 / seconds)))
    total = clock.block(run, calls, 0)[0]
    backend = load(ours.name.split()[-1])
    # Twice: the first event of a process's first profile takes 0.1 s more.
    for count in (1, calls):
        with recorded(backend) as seconds, profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(count):
                run()
    phases = {kernel: dict(zip(cpu._cpu.phases(), (1e3 / calls / threads * each).tolist()))
              for kernel, each in seconds.items() if each.any()}
    return total, split(profiler.events(), calls), phases


def run(name: str, options: Options, terminal: Console) -> int:
    cases = select(list(SUITES), name)
    if not cases:
        terminal.print(f"no case's name contains {name!r}")
        return 2
    case = cases[0]
    for threads in options.threads:
        for precision in options.precisions:
            for mode in options.modes:
                measured = measure(case, mode, precision, threads)
                if measured is None:
                    terminal.print(f"no fused backend runs {case.name} in {precision}")
                    return 2
                terminal.print(show(f"{case.name}, {mode}, {precision}, {threads} threads", *measured))
    return 0


def show(title: str, total: float, parts: dict[str, float], phases: dict[str, dict[str, float]]) -> Table:
    """What a kernel takes beyond its phases is memory for its results, the start of its threads, and Python's part of
    the call. The rest is what no part explains: Python, autograd, dispatch; the profiler makes parts of many short
    operators seem longer than they are, so it may come out below zero and is then none."""
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    rest = max(0.0, total - sum(parts.values()))
    for name, value in (*parts.items(), ("rest: Python, autograd, dispatch", rest), ("whole call", total)):
        if not value:
            continue
        table.add_row(name, f"{value:.3f}", f"{value / total:.1%}")
        for phase, ms in phases.get(name, {}).items():
            if ms:
                table.add_row(f"  {phase}", f"{ms:.3f}", f"{ms / total:.1%}")
    return table
