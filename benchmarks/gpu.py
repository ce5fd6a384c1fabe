"""Everything for a GPU that is there for some minutes only: one command, the most telling things first, resumable."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from . import machine, report
from .cases import MODES, SUITES
from .console import UserError
from .exchange import FILE, section
from .records import load
from .watch import watch

OUT = Path(__file__).parent / "out" / "gpu"
RESERVE = 45
"""Seconds kept for the report."""
LEAST = 15
"""With less time than this left, no step begins."""


@dataclass(frozen=True)
class Step:
    """A command. ``estimate`` is a guess in seconds, ``limit`` what it may take at most; ``adds`` results to
    ``results.jsonl``, in which case it is started again where it left off if a contestant takes it down."""

    name: str
    what: str
    command: tuple[str, ...]
    estimate: float
    limit: float = float("inf")
    adds: bool = False
    good: tuple[int, ...] = (0,)


def plan(out: Path, sanitizer: bool, rehearsal: bool = False) -> list[Step]:
    """The steps, sorted by worth. A rehearsal runs them on the CPU with tiny cases."""
    python, device = (sys.executable, "-m"), "cpu" if rehearsal else "cuda"
    threads = ("--threads", "1" if rehearsal else "all")
    results = out / "results.jsonl"

    def bench(name, what, suite, seconds, *options):
        """``seconds`` for each case and mode."""
        suite = "tiny" if rehearsal else suite
        estimate = 15 + (0.3 if rehearsal else seconds) * len(SUITES[suite]) * len(MODES)
        return Step(name, what, (*python, "benchmarks", device, "--suite", suite, "--seconds", "0.15", *threads,
                                 "--out", str(results), *options), estimate, adds=True, good=(0, 1))

    def check(prefix=()):
        return (*prefix, *python, "benchmarks", device, "--suite", "tiny", "--check-only", *threads)

    def sanitize(tool, estimate):
        if not sanitizer:
            return []
        prefix = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
        # Only ours: torch's own reports of harmless errors would drown it.
        command = (*check(prefix), "--only", "nobody", "--out", str(out / f"{tool}.jsonl"))
        return [Step(f"sanitizer-{tool}", f"tiny cases under compute-sanitizer's {tool}", command, estimate, 600)]

    def exchange():
        if shutil.which("nvcc") is None:
            return []
        options = ("--compile-only",) if rehearsal else ("--out", str(out / FILE))
        return [Step("exchange", "what it costs that processors meet once per step",
                     (*python, "benchmarks", "exchange", *options), 40, 120)]

    main = ("--only", "nn.LSTM", "--without", "compiled,loop", "--precision", "bf16,fp16,fp32")
    return [
        Step("build", "which backends are there", (*python, "xlstm_fused", "info"), 15, 60),
        Step("check", "tiny cases of every kind, compared and not timed",
             (*check(), "--only", "nn.LSTM", "--out", str(out / "check.jsonl")), 60, 300),
        # pytest's 5 is: no tests.
        Step("tests", "GPU tests", (*python, "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"), 180, 420,
             good=(0, 5)),
        *exchange(),
        bench("core", "nn.LSTM in every precision, and the reference", "gpu-core", 25, "--only", "nn.LSTM,reference"),
        *sanitize("memcheck", 90),
        bench("grid", "nn.LSTM over H and B", "gpu-grid", 8, *main),
        bench("resets", "resets: torchrl, the loop over nn.LSTMCell", "gpu-resets", 20),
        bench("heads", "FlashRNN's Triton kernels, one head and several", "gpu-heads", 15,
              "--only", "triton_fused,torchrl", "--precision", "bf16,fp16"),
        bench("layouts", "ragged, bidirectional, single steps, long", "gpu-layouts", 15, *main),
        *sanitize("racecheck", 180), *sanitize("synccheck", 120),
        bench("nvcc", "FlashRNN's and xlstm's CUDA kernels, which nvcc builds for each shape", "gpu-heads", 120,
              "--only", "cuda_fused,FlashRNN cuda,xlstm cuda", "--precision", "bf16"),
    ]


def finished(out: Path) -> dict[str, str]:
    """The steps that earlier runs in this folder finished with the same code, and how they ended."""
    path = out / "steps.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {line["step"]: line["status"] for line in lines
            if line["source"] == machine.source() and line["status"] != "out of time"}


def fits(step: Step, left: float) -> bool:
    """Whether to begin it. What adds results keeps what it has when it is stopped, and so needs little time."""
    return left > max(LEAST, 0 if step.adds else step.estimate / 2)


def schedule(steps: list[Step], done: dict[str, str], minutes: float) -> list[tuple[Step, str]]:
    """Each step with what will become of it, if the estimates hold."""
    left, rows = 60 * minutes - RESERVE, []
    for step in steps:
        if step.name in done:
            rows.append((step, f"already {done[step.name]}"))
        elif not fits(step, left):
            rows.append((step, "no time"))
        else:
            rows.append((step, "runs" if step.estimate <= left else "runs in part"))
            left -= step.estimate
    return rows


def show(rows: list[tuple[Step, str]], terminal: Console) -> None:
    table = Table(caption=f"then the report, for which {RESERVE} s are kept; the seconds are guesses")
    table.add_column("step")
    table.add_column("what")
    table.add_column("about, s", justify="right")
    table.add_column("plan")
    for step, verdict in rows:
        table.add_row(step.name, step.what, f"{step.estimate:.0f}", verdict)
    terminal.print(table)


def add_arguments(parser) -> None:
    parser.add_argument("--minutes", type=float, default=30, metavar="N",
                        help="how long it may take, all in all; default: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR",
                        help="for results, logs and report; what it holds already of the same code is not run again")
    parser.add_argument("--dry-run", action="store_true", help="list what would run, with guesses of the time")
    parser.add_argument("--rehearse", action="store_true", help="run the same steps on the CPU, with tiny cases")


def run(args, terminal: Console) -> int:
    begin = time.monotonic()
    if args.minutes * 60 <= RESERVE + LEAST:
        raise UserError(f"--minutes: expected more than {(RESERVE + LEAST) / 60:.0f}, got {args.minutes:g}")
    steps = plan(args.out.resolve(), shutil.which("compute-sanitizer") is not None, args.rehearse)
    rows = schedule(steps, finished(args.out), args.minutes)
    show(rows, terminal)
    if args.dry_run:
        return 0
    if not args.rehearse and not torch.cuda.is_available():
        raise UserError("no CUDA device here; --dry-run lists what would run, --rehearse runs it on the CPU in small")
    args.out.mkdir(parents=True, exist_ok=True)
    deadline = begin + 60 * args.minutes - RESERVE
    bad = False
    for step, verdict in rows:
        if verdict.startswith("already") or not fits(step, deadline - time.monotonic()):
            terminal.print(f"{step.name:<20} {verdict if verdict.startswith('already') else 'no time'}")
            continue
        start = time.monotonic()
        status = watch(step, args.out, deadline)
        seconds = round(time.monotonic() - start, 1)
        with (args.out / "steps.jsonl").open("a") as file:
            file.write(json.dumps({"step": step.name, "status": status, "seconds": seconds, "time": machine.now(),
                                   **machine.code()}) + "\n")
        bad |= status.startswith("failed")
        terminal.print(f"{step.name:<20} {status}, {seconds:.0f} s; log: {step.name}.log", highlight=False)
    results = args.out / "results.jsonl"
    if results.exists():
        report.write(load([results]), args.out, [section(args.out / FILE)] if (args.out / FILE).exists() else [])
        terminal.print("report: report.md, beside the logs")
    return 1 if bad else 0
