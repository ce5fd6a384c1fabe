"""The command for a borrowed GPU, without one: its plan, and how it treats what dies or hangs."""

import json
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The benchmark is run in the repository and not installed.
sys.path.insert(0, str(ROOT))

from benchmarks import exchange, gpu, machine, runner, watch  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.cases import Case  # noqa: E402
from benchmarks.records import Record, case_fields, load  # noqa: E402

# What a worker does, but for the work: it says what it runs on its heartbeat, which counts how often it was started.
WORKER = """
import json, os, sys, time
started, last, limit, record = sys.argv[1:5]
count = len(open(started).read()) if os.path.exists(started) else 0
open(started, "a").write("x")
if count < 2:
    record = json.loads(record) | {"contestant": f"number {count}"}
    beat = sys.argv[sys.argv.index("--heartbeat") + 1]
    open(beat, "w").write(json.dumps({"time": time.time(), "limit_s": float(limit), "record": json.dumps(record)}))
    exec(last)
"""


def step(*command, **options):
    return gpu.Step("step", "made up", (sys.executable, "-c", *command), 1, **options)


def test_gpu_dry_run_lists_what_would_run(tmp_path, capsys):
    out = tmp_path / "lease"
    assert main(["gpu", "--minutes", "30", "--out", str(out), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert not out.exists()
    names = [step.name for step in gpu.plan(out, sanitizer=False)]
    expected = ["build", "check", "tests", "core", "grid", "resets", "heads", "layouts", "nvcc"]
    if shutil.which("nvcc"):
        expected.insert(3, "exchange")
    assert names == expected
    assert all(re.search(rf"{name} .* \d+ ", printed) for name in names)


def test_gpu_needs_no_options(capsys):
    assert main(["gpu", "--dry-run"]) == 0
    assert "grid" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_exchange_program_compiles(capsys):
    assert main(["exchange", "--compile-only"]) == 0
    assert "compiles for sm_" in capsys.readouterr().out


def test_exchange_without_nvcc_says_so(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["exchange"]) == 2
    assert "nvcc is not on the PATH" in capsys.readouterr().err


def test_exchange_section_has_every_line(tmp_path):
    lines = [{"way": "push", "ctas": 4, "us": 0.2, "ok": True}, {"way": "flag", "ctas": 8, "us": 0.7, "ok": False},
             {"way": "resident", "ctas": 8, "shared": 65536, "clusters": 15}]
    path = tmp_path / exchange.FILE
    path.write_text("\n".join(map(json.dumps, lines)))
    text = exchange.section(path)
    assert "| push | 4 | 0.200 us |" in text and "| flag | 8 | wrong values |" in text
    assert "| clusters of 8 at once, 64 KiB each | 8 | 15 |" in text


def test_gpu_schedule_keeps_to_its_time_and_passes_by_what_is_done(tmp_path):
    steps = gpu.plan(tmp_path, sanitizer=True)
    assert [step.name for step in steps if "sanitizer" in step.name] == [
        "sanitizer-memcheck", "sanitizer-racecheck", "sanitizer-synccheck"]
    verdicts = {step.name: verdict for step, verdict in gpu.schedule(steps, {"build": "done"}, 9)}
    assert verdicts["build"] == "already done" and verdicts["check"] == "runs"
    assert verdicts["core"] == "runs in part" and verdicts["nvcc"] == "no time"
    assert {verdict for _, verdict in gpu.schedule(steps, {}, 10000)} == {"runs"}
    for step in steps:
        assert step.command[-1] and ("--out" not in step.command or str(tmp_path) in " ".join(step.command))


def test_watch_reports_success_failure_and_time(tmp_path):
    def status(body, seconds=60, **options):
        return watch.watch(step(f"import sys, time\n{body}", **options), tmp_path, time.monotonic() + seconds)

    assert status("print('hello')") == "done"
    assert (tmp_path / "step.log").read_text() == "hello\n"
    assert status("sys.exit(5)", good=(0, 5)) == "done"
    assert status("sys.exit(3)") == "failed (the process ended with status 3)"
    assert status("time.sleep(60)", seconds=1) == "out of time"
    assert status("time.sleep(60)", limit=1) == "failed (longer than 1 s)"
    assert status(f"sys.exit({runner.STOPPED})", adds=True) == "out of time"


@pytest.mark.parametrize("last, reason", [
    ("time.sleep(60)", "the process hung"), ("os.kill(os.getpid(), 11)", "the process died of signal 11"),
    (f"sys.exit({runner.DEAD})", f"the process ended with status {runner.DEAD}")])
def test_watch_blames_the_contestant_that_was_running_and_goes_on_behind_it(tmp_path, last, reason):
    record = Record(case_fields(Case(1, 2, 3, 4)), "training", "", "bf16", "a GPU", 1, "failed",
                    source=machine.source())
    started = tmp_path / "started"
    worker = step(WORKER, str(started), last, "1", record.to_json(), adds=True)
    assert watch.watch(worker, tmp_path, time.monotonic() + 60) == "done"
    blamed = load([tmp_path / "results.jsonl"])
    assert [(each.contestant, each.status, each.reason) for each in blamed] == [
        ("number 0", "failed", reason), ("number 1", "failed", reason)]
    assert started.read_text() == "xxx"


def test_watch_does_not_start_again_what_says_nothing(tmp_path):
    assert watch.watch(step("import os; os.abort()", adds=True), tmp_path, time.monotonic() + 60) == (
        "failed (the process died of signal 6)")
