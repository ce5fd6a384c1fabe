"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from . import breakdown, compare, console, denormals, exchange, gpu, machine, readme, report
from .cases import CPU_SUITES, GPU_SUITES, MODES, QUICK, SUITES, select
from .console import UserError
from .contestants import default_precisions, missing
from .measure import Effort
from .problem import PRECISIONS
from .records import load
from .runner import STOPPED, Options, Runner, jobs
from .tables import exclusions

OUT = Path(__file__).parent / "out"
QUICK_SECONDS = 150
"""After which --quick begins nothing new, for a machine that is busy with something else."""


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a case of each kind, in 3 minutes on 2 cores")
    parser.add_argument("--suite", type=listed, default=[], metavar="NAMES", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--threads", type=listed, metavar="N,all", help="default: 1,all; on a GPU all")
    parser.add_argument("--mode", type=listed, default=list(MODES), metavar="NAMES", help="default: %(default)s")
    parser.add_argument("--precision", type=listed, metavar="NAMES", help=f"of {', '.join(PRECISIONS)}")
    parser.add_argument("--only", type=listed, default=[], metavar="NAMES", help="rivals to run, by parts of names")
    parser.add_argument("--without", type=listed, default=[], metavar="NAMES",
                        help="rivals to leave out, by parts of names")
    parser.add_argument("--compile-reference", action="store_true", help="also the reference under torch.compile")
    parser.add_argument("--check-only", action="store_true", help="compare results and time nothing")
    parser.add_argument("--seconds", type=float, metavar="S", help="per contestant (default 1, quick 0.1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where results go; what it holds already is not run")
    parser.add_argument("--stop-after", type=float, metavar="S", help="begin nothing new after this many seconds")
    parser.add_argument("--heartbeat", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true", help="print the cases and leave")


def options_of(args, device: str) -> Options:
    names = args.threads or (["1", "all"] if device == "cpu" else ["all"])
    try:
        threads = sorted({machine.cores() if name == "all" else int(name) for name in names})
    except ValueError:
        raise UserError(f"--threads: expected numbers or 'all', got {','.join(names)}") from None
    if threads[0] < 1:
        raise UserError(f"--threads: expected at least 1, got {threads[0]}")
    default = ("fp32",) if args.quick and device == "cpu" else default_precisions(device)
    choices = (("--suite", args.suite, SUITES), ("--mode", args.mode, MODES),
               ("--precision", args.precision or [], PRECISIONS))
    for option, values, allowed in choices:
        for value in values:
            if value not in allowed:
                raise UserError(f"{option}: expected some of {', '.join(allowed)}, got {value!r}")
    seconds = args.seconds or (0.1 if args.quick else 1.0)
    stop_after = args.stop_after or (QUICK_SECONDS if args.quick else float("inf"))
    # Dynamo compiles for seconds what it then leaves to eager mode.
    without = args.without + (["nn.LSTM, compiled"] if args.quick else [])
    effort = Effort(seconds, 5 if args.quick or device == "cuda" else 11)
    return Options(device, threads, list(args.precision or default), effort, tuple(args.mode), args.only, without,
                   args.compile_reference, args.check_only, args.quick, args.out, args.heartbeat,
                   time.monotonic() + stop_after)


def run(args, device: str, terminal: Console) -> int:
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here")
    options = options_of(args, device)
    if args.quick and not args.suite:
        cases = [case for case in QUICK if args.case in case.name]
    else:
        cases = select(args.suite or list(CPU_SUITES if device == "cpu" else GPU_SUITES), args.case)
    if not cases:
        raise UserError(f"--case: no case's name contains {args.case!r}; see --list")
    if args.list:
        terminal.print("\n".join(case.name for case in cases), highlight=False)
        return 0
    if options.out is None:
        options.out = OUT / f"{device}-{machine.now().replace(':', '')}.jsonl"
    terminal.print(f"{machine.device_name(device)}; torch {torch.__version__}; "
                   f"precisions {', '.join(options.precisions)}; threads {', '.join(map(str, options.threads))}")
    if absent := missing(device):
        terminal.print(f"not installed, so not measured: {', '.join(absent)}")
    runner = Runner(options)
    total = len(jobs(cases, options))
    with console.progress(terminal) as bar:
        task = bar.add_task("", total=total)
        done = -1

        def begin(job):
            nonlocal done
            done += 1
            bar.update(task, completed=done, description=str(job))

        records = runner.run(cases, begin)
        if done + 1 == total:
            bar.update(task, completed=total, description="done")
    terminal.print(console.table(records))
    for line in exclusions(records):
        terminal.print(line, style="red", highlight=False)
    if records:
        terminal.print(f"results: {shown(options.out)}; for tables and plots: python -m benchmarks report "
                       f"{shown(options.out)} --out DIR", highlight=False, soft_wrap=True)
    if done + 1 < total:
        terminal.print(f"stopped in time: {total - done - 1} of {total} left")
        return STOPPED
    return 1 if any(each.ours and each.status in ("wrong", "failed") for each in records) else 0


def shown(path: Path) -> str:
    """Relative to where the user is, if it is below."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def read(paths: list[Path]):
    try:
        return load(paths)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from None


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure xlstm_fused beside its rivals.")
    commands = main.add_subparsers(dest="command", required=True)
    cpu = commands.add_parser("cpu", help="measure on the CPU")
    run_arguments(cpu)
    cpu.add_argument("--breakdown", metavar="CASE", help="instead: where the time of our call goes, by name of a case")
    cuda = commands.add_parser("cuda", help="measure on one GPU, in this process")
    run_arguments(cuda)
    gpu.add_arguments(commands.add_parser("gpu", help="everything for a GPU that is there for some minutes"))
    meeting = commands.add_parser("exchange", help="what it costs on a GPU that processors meet once per step")
    meeting.add_argument("--out", type=Path, metavar="FILE", help="where results go, as JSON lines")
    meeting.add_argument("--compile-only", action="store_true", help="only build the CUDA program")
    denormals.arguments(commands.add_parser("denormals", help="whether subnormal numbers slow a call on the CPU; "
                                            f"status 1 if by more than {denormals.LIMIT}"))
    one = commands.add_parser("report", help="tables and plots of result files")
    one.add_argument("files", type=Path, nargs="+")
    one.add_argument("--out", type=Path, required=True, metavar="DIR")
    two = commands.add_parser("compare", help="what got slower from one result file to another; status 1 if anything")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    two.add_argument("--all", action="store_true", help="rivals too, which tell whether the machine changed")
    page = commands.add_parser("readme", help="write the README's section from the committed results")
    page.add_argument("--check", action="store_true", help="only say whether it is up to date")
    return main


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 2 for a mistake of the user's."""
    args = parser().parse_args(argv)
    terminal = Console()
    if not terminal.is_terminal:
        # A table in a file or a pipe is not folded to 80 columns.
        terminal = Console(width=180)
    try:
        if args.command == "cpu" and args.breakdown:
            return breakdown.run(args.breakdown, options_of(args, "cpu"), terminal)
        if args.command in ("cpu", "cuda"):
            return run(args, args.command, terminal)
        if args.command == "gpu":
            return gpu.run(args, terminal)
        if args.command == "exchange":
            return exchange.run(args.out, args.compile_only, terminal)
        if args.command == "denormals":
            return denormals.run(args)
        if args.command == "report":
            terminal.print(f"written: {shown(report.write(read(args.files), args.out))}", highlight=False)
            return 0
        if args.command == "compare":
            return compare.run(read([args.before]), read([args.after]), args.all, terminal)
        return readme.run(args.check, terminal)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
