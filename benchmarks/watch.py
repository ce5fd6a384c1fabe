"""Run a step as a process that may die or hang: on a GPU one bad kernel takes its whole process with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from .machine import ROOT
from .records import Record, append, load
from .runner import DEAD, STOPPED

POLL = 0.2
GRACE = 20
"""Seconds between asking a run to begin nothing new and killing it."""


def watch(step, out: Path, deadline: float) -> str:
    """Run it, again where a contestant took it down: "done", "failed (why)" or "out of time"."""
    beat = out.resolve() / "heartbeat.json"
    log = out / f"{step.name}.log"
    log.unlink(missing_ok=True)
    if not step.adds:
        # Results of checks only: an earlier run's, cut short, would make this one skip.
        for part in step.command:
            if part.endswith(".jsonl"):
                Path(part).unlink(missing_ok=True)
    end = min(deadline, time.monotonic() + step.limit)
    while True:
        left = end - time.monotonic()
        if left <= 0:
            return "out of time"
        beat.unlink(missing_ok=True)
        command = [*step.command]
        if step.adds:
            command += ["--heartbeat", str(beat), "--stop-after", f"{max(1, left - GRACE):.0f}"]
        status = _run(command, log, beat, end)
        if status in step.good:
            return "done"
        if status == STOPPED:
            return "out of time"
        if status == "out of time":
            # By its own limit, time being left, is a failure: it would come to nothing again.
            return status if end == deadline else f"failed (longer than {step.limit:.0f} s)"
        if not step.adds or not _blame(beat, status, out / "results.jsonl"):
            return f"failed ({_words(status)})"


def _run(command: list[str], log: Path, beat: Path, end: float) -> int | str:
    """The exit status, or "hung" or "out of time" of a process that was killed for that."""
    with log.open("a") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        verdict = None
        while process.poll() is None and verdict is None:
            time.sleep(POLL)
            verdict = "out of time" if time.monotonic() > end else "hung" if _is_hung(beat) else None
        if verdict is not None:
            # With its children: compilers, above all.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return verdict or process.returncode


def _read(beat: Path) -> dict | None:
    try:
        return json.loads(beat.read_text())
    except (OSError, ValueError):
        # Not there yet, or being written.
        return None


def _is_hung(beat: Path) -> bool:
    said = _read(beat)
    return said is not None and time.time() > said["time"] + said["limit_s"]


def _blame(beat: Path, status: int | str, results: Path) -> bool:
    """Record the contestant that was running as failed, so that the next process passes it by; False if none was."""
    said = _read(beat)
    if said is None:
        return False
    record = replace(Record.from_json(said["record"]), reason=_words(status))
    known = {each.key: each for each in load([results])} if results.exists() else {}
    earlier = known.get(record.key)
    if earlier is not None and earlier.source == record.source:
        # It is in the file already: it told us itself, with DEAD, or it went down after its times were known.
        return status == DEAD or earlier.status == "ok"
    append(results, record)
    return True


def _words(status: int | str) -> str:
    if isinstance(status, str):
        return f"the process {status}" if status == "hung" else status
    return f"the process died of signal {-status}" if status < 0 else f"the process ended with status {status}"
