"""The README's performance section, written from the committed results and from nothing else."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from .cases import MODES
from .machine import ROOT
from .records import Record, baseline_ratio, load
from .report import bullets, by_device
from .tables import BASELINE, by_place, exclusions, markdown, provenance, rival_summary

README, RESULTS = ROOT / "README.md", Path(__file__).parent / "results"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
NONE = ("No results are committed yet. `python -m benchmarks cpu --quick` measures this machine in three minutes; "
        "[benchmarks/README.md](benchmarks/README.md) says what it measures.")
INTRODUCTION = """\
Written by `python -m benchmarks readme` from `benchmarks/results`: medians of runs in one process, the rival's and ours
in turns, the input product and all copies included on every side. A ratio is the rival's time over ours: below 1, in
bold, we lose. [benchmarks/README.md](benchmarks/README.md) says how to measure it yourself."""


def committed() -> list[Record]:
    return load(sorted(RESULTS.glob("*.jsonl"))) if RESULTS.is_dir() else []


def case_table(records: list[Record]) -> str:
    """Every case: our time, and nn.LSTM's (with resets, the loop's; else the nearest rival's) over ours, both modes."""
    rows = {}
    for (_, _, case, mode), group in by_place(records).items():
        for precision in dict.fromkeys(each.precision for each in group):
            same = [each for each in group if each.precision == precision]
            ours = next((each for each in same if each.ours), None)
            timed = {each.contestant: baseline_ratio(each) for each in same if baseline_ratio(each)}
            name = BASELINE if BASELINE in timed else min(timed, key=timed.get, default=None)
            row = rows.setdefault((case, precision), {})
            time = "-" if ours is None else f"{ours.ms['p50']:.3g} ms" if ours.ms else ours.status
            row[mode] = time, "-" if name is None else ratio_text(timed[name])
            row["rival"] = name or row.get("rival") or "-"
    header = ["case", "against", *(text for mode in MODES for text in (f"{mode}, ours", "ratio"))]
    return markdown(header, [[f"{case}, {precision}", row["rival"], *(text for mode in MODES
                                                                      for text in row.get(mode, ("-", "-")))]
                             for (case, precision), row in rows.items()])


def ratio_text(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio >= 1 else f"**{ratio:.2f}x**"


def section(records: list[Record]) -> str:
    """What stands between the markers."""
    if not records:
        return NONE
    parts = [INTRODUCTION]
    for (device, threads), group in by_device(records).items():
        parts += [f"**{device}, {threads} {'thread' if threads == 1 else 'threads'}** ({provenance(group)})"]
        if any(each.ratios for each in group):
            parts.append(rival_summary(group))
        parts.append(f"<details><summary>Every case</summary>\n\n{case_table(group)}\n\n</details>")
        if lines := exclusions(group):
            parts += ["Without a time:", bullets(lines)]
    return "\n\n".join(parts)


def rewritten(text: str, records: list[Record]) -> str:
    """``text`` with the section between the markers replaced; ValueError if they are not there once and in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md: expected one {BEGIN} and after it one {END}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{section(records)}\n{END}{rest.split(END)[1]}"


def run(check: bool, terminal: Console) -> int:
    text = README.read_text()
    new = rewritten(text, committed())
    if new == text:
        terminal.print("README.md is up to date")
        return 0
    if check:
        terminal.print("README.md does not match benchmarks/results: run python -m benchmarks readme")
        return 1
    README.write_text(new)
    terminal.print("README.md written")
    return 0
