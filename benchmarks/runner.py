"""Run cases: build, check, then time everyone side by side, and write a record of each at once."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from . import machine, measure
from .cases import MODES, Case
from .contestants import LOOP_STEPS, QUICK_LOOP_STEPS, Contestant, roster, truth
from .floor import floor_ms, traffic
from .problem import DTYPES, LIMITS, Problem, worst_error
from .ready import Ready
from .records import Record, Spread, append, case_fields, load

DEAD = 75
"""Exit status of a process whose CUDA context is beyond use: what is left needs a new process."""

STOPPED = 4
"""Exit status of a process that began nothing more after its deadline."""

BLOCK_SECONDS = 120
"""How long a block of timed calls may take before it counts as hung."""


@dataclass
class Options:
    device: str
    threads: list[int]
    precisions: list[str]
    effort: measure.Effort
    modes: tuple[str, ...] = MODES
    only: list[str] = field(default_factory=list)
    """Parts of the names of the contestants to run; all if empty. Ours runs always."""
    without: list[str] = field(default_factory=list)
    compile_reference: bool = False
    check_only: bool = False
    is_quick: bool = False
    out: Path | None = None
    heartbeat: Path | None = None
    """A file that says which contestant is running, for a process that watches this one."""
    deadline: float = float("inf")
    """When to stop, of ``time.monotonic()``."""

    def loop_steps(self, threads: int) -> int:
        """The most steps that a loop in Python runs, to which more threads than one are of no use."""
        if not self.is_quick:
            return LOOP_STEPS
        return QUICK_LOOP_STEPS if threads == 1 else 1


@dataclass(frozen=True)
class Job:
    case: Case
    threads: int
    mode: str

    def __str__(self) -> str:
        return f"{self.case.name}, {self.mode}, {self.threads} threads"


def jobs(cases: Iterable[Case], options: Options) -> list[Job]:
    """One thread first: should time run out, or the machine be busy, that much is sound."""
    cases = list(cases)
    return [Job(case, threads, mode) for threads in options.threads for case in cases for mode in options.modes]


class Runner:
    def __init__(self, options: Options, contestants: list[Contestant] | None = None):
        self.options = options
        everyone = contestants or roster(options.device, options.compile_reference)
        self.contestants = [each for each in everyone if each.is_ours or (
            (not options.only or any(part in each.name for part in options.only))
            and not any(part in each.name for part in options.without))]
        self._problem = self._truth = None
        # Only results of the same code count as already there.
        existing = load([options.out]) if options.out and options.out.exists() else []
        self.known = {record.key: record for record in existing if record.source == machine.source()
                      and (options.check_only or record.status != "checked")}

    def run(self, cases: Iterable[Case], begin: Callable[[Job], None] = lambda job: None) -> list[Record]:
        """The new records; stops before a job that would begin after the deadline."""
        found = []
        for job in jobs(cases, self.options):
            if time.monotonic() > self.options.deadline:
                break
            begin(job)
            found += self.run_job(job)
        return found

    def run_job(self, job: Job) -> list[Record]:
        wanted = {(each.name, precision): each for each in self.contestants for precision in self.options.precisions
                  if each.reason(job.case, precision, self.options.loop_steps(job.threads)) is None}
        ours = {}
        for (name, precision), each in wanted.items():
            if each.is_ours:
                # The first of our backends that runs this is what backend="auto" would choose.
                ours.setdefault(precision, (name, precision))
        records = {key: self._record(job, each, key[1], key in ours.values()) for key, each in wanted.items()}
        new = [key for key, record in records.items() if record.key not in self.known]
        if not new:
            return []
        # Ours runs again beside whoever is new, for the ratios.
        records = {key: record for key, record in records.items() if key in new or record.ours}
        expected = self._expected(job)
        torch.set_num_threads(job.threads)
        ready = {}
        for key, record in records.items():
            each = self._prepare(job, wanted[key], record, expected)
            if each is not None:
                ready[key] = each
            else:
                self._write(record)
        if self.options.check_only:
            for key in ready:
                records[key].status, records[key].reason = "checked", ""
                self._write(records[key])
        elif ready:
            loops = {key for key in ready if wanted[key].is_loop}
            self._time(job, {key: records[key] for key in ready}, ready, ours, loops)
        return list(records.values())

    def _record(self, job: Job, contestant: Contestant, precision: str, ours: bool) -> Record:
        """Of something that has not run yet."""
        return Record(case=case_fields(job.case), mode=job.mode, contestant=contestant.name, precision=precision,
                      device=machine.device_name(self.options.device), threads=job.threads, status="failed", ours=ours,
                      version=contestant.version, time=machine.now(), flops=job.case.flops(job.mode),
                      versions=machine.versions(self.options.device), **machine.code())

    def _prepare(self, job: Job, contestant: Contestant, record: Record, expected: dict) -> Ready | None:
        """Build, call for the first time and check; None, and the record says why, if it is out."""
        earlier = self.known.get((*record.key[:3], MODES[0], *record.key[4:]))
        if job.mode != MODES[0] and earlier is not None and earlier.status == "failed":
            # It would fail again, and building it may take minutes.
            record.reason = earlier.reason
            return None
        self._beat(record, contestant.build_seconds)
        try:
            begin = time.perf_counter()
            ready = contestant.build(self._problem, record.precision)
            ready.runner(job.mode)()
            self._synchronize()
            record.first_call_s = round(time.perf_counter() - begin, 4)
            results = ready.results(job.mode)
        except Exception as error:
            record.reason = one_line(error)
            self._survive(record)
            return None
        record.output_dtype = ready.output_dtype
        error, record.error_of = worst_error(results, expected)
        # JSON has no inf.
        record.error = min(error, 1e30)
        tf32 = record.precision == "fp32" and self.options.device == "cuda"
        if error > LIMITS["tf32" if tf32 else record.precision]:
            record.status, record.reason = "wrong", f"error {error:.1e} of {record.error_of}"
            return None
        return ready

    def _expected(self, job: Job) -> dict:
        if self._problem is None or self._problem.case != job.case:
            # One at a time in memory.
            self._problem = self._truth = None
            # Threads that wait for each other at each of many small steps would take longer than one.
            torch.set_num_threads(max(self.options.threads) if job.case.flops("training") > 1e10 else 1)
            self._problem = Problem(job.case, self.options.device)
            self._truth = truth(self._problem)
        return self._truth

    def _time(self, job: Job, records: dict[tuple, Record], ready: dict[tuple, Ready], ours: dict, loops: set) -> None:
        device = self.options.device
        clock = measure.CudaClock() if device == "cuda" else measure.CpuClock(job.threads)
        runs = {key: each.runner(job.mode) for key, each in ready.items()}
        rates = {precision: measure.gemm_gflops(device, precision, job.threads) for _, precision in runs}
        copy_gbs = measure.copy_gbs(device, job.threads)
        result = self._race(clock, records, runs, ours)
        clocks = machine.clocks(device)
        for key, record in records.items():
            record.clocks = clocks
            record.status, record.ms, record.ratios = "ok", Spread.of(result.times[key]), ratios(result, key)
            record.samples, record.calls = len(result.times[key]), result.calls[key]
            record.peak_bytes = measure.peak_bytes(device, runs[key])
            record.gemm_gflops = round(rates[key[1]], 2)
            record.gemm_share = round(record.flops / (record.ms["p50"] * 1e6) / rates[key[1]], 4)
            itemsize = DTYPES[key[1]].itemsize
            record.traffic_bytes, record.copy_gbs = traffic(job.case, job.mode, itemsize), round(copy_gbs, 2)
            least = floor_ms(job.case, job.mode, itemsize, device if device == "cpu" else record.device, rates[key[1]],
                             copy_gbs)
            if least is not None:
                record.floor_ms, record.floor_share = float(f"{least:.6g}"), round(least / record.ms["p50"], 4)
            self._write(record)
        if device == "cuda":
            runs = {key: run for key, run in runs.items() if key not in loops}
            for key, run in runs.items():
                try:
                    records[key].kernels = measure.kernels(run)
                except RuntimeError as error:
                    # Profiling may be forbidden on this machine; times are worth having without it.
                    records[key].kernels = [one_line(error)]
            self._time_graphs(clock, records, runs, ours)

    def _time_graphs(self, clock, records: dict, runs: dict, ours: dict) -> None:
        """The same as CUDA graphs, which leave out what Python and launches cost; written over what is known."""
        replays = {}
        for key, run in runs.items():
            self._beat(records[key], BLOCK_SECONDS)
            try:
                replays[key] = measure.graphed(run)
            except Exception as error:
                records[key].graph_reason = one_line(error)
                self._survive(records[key])
        result = self._race(clock, records, replays, ours)
        for key in runs:
            if key in replays:
                records[key].graph_ms, records[key].graph_ratios = Spread.of(result.times[key]), ratios(result, key)
            self._write(records[key])

    def _race(self, clock, records: dict, runs: dict[tuple, Callable], ours: dict) -> measure.Race:
        pairs = [(key, ours[precision]) for key in runs if not records[key].ours
                 for precision in against(*key) if ours.get(precision) in runs]
        return measure.race(clock, runs, pairs, self.options.effort,
                            lambda key: self._beat(records[key], BLOCK_SECONDS))

    def _write(self, record: Record) -> None:
        self.known[record.key] = record
        if self.options.out:
            append(self.options.out, record)

    def _beat(self, record: Record, seconds: float) -> None:
        if self.options.heartbeat:
            failed = replace(record, status="failed", ms=None, ratios={}, graph_ms=None, graph_ratios={})
            self.options.heartbeat.write_text(json.dumps(
                {"time": time.time(), "limit_s": seconds, "record": failed.to_json()}))

    def _synchronize(self) -> None:
        if self.options.device == "cuda":
            torch.cuda.synchronize()

    def _survive(self, record: Record) -> None:
        """After an error: leave with status DEAD if it took the CUDA context with it."""
        if self.options.device != "cuda":
            return
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception:
            self._write(record)
            raise SystemExit(DEAD) from None


def ratios(result: measure.Race, rival: tuple) -> dict[str, Spread]:
    """Of one rival, by the precision of ours."""
    return {ours[1]: Spread.of(values) for (key, ours), values in result.ratios.items() if key == rival and values}


def against(contestant: str, precision: str) -> tuple[str, ...]:
    """The precisions of ours that a rival is run beside: its own; nn.LSTM also beside our bfloat16, since what a user
    of nn.LSTM has today, in whatever precision is its best, is what bfloat16 would replace."""
    return tuple(dict.fromkeys((precision, "bf16-R", "bf16"))) if contestant == "nn.LSTM" else (precision,)


def one_line(error: BaseException) -> str:
    """What is wrong, without this machine's paths."""
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return re.sub(r"/\S*/", ".../", text)[:200]
