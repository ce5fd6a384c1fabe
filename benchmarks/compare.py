"""What became slower from one set of results to another, as far as noise lets one tell."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from .records import Record

THRESHOLD = 0.03
"""Smaller changes of the median are none, however narrow the spreads: code that moves in memory changes as much."""

BAD = ("slower", "broken", "missing")
STYLES = {"slower": "red", "broken": "red", "missing": "yellow", "faster": "green"}


class Verdict(NamedTuple):
    record: Record
    verdict: str
    """One of BAD, or "faster", "same", "new", "repaired"."""
    change: float | None
    """Of the median: 0.1 is a tenth longer."""


def judge(before: Record | None, after: Record | None) -> Verdict:
    """Slower or faster only where the spreads p20-p80 do not overlap and the medians differ by THRESHOLD."""
    if before is None or after is None:
        return Verdict(after or before, "new" if before is None else "missing", None)
    if before.ms is None or after.ms is None:
        verdict = "same" if before.ms is after.ms else "broken" if after.ms is None else "repaired"
        return Verdict(after, verdict, None)
    change = after.ms["p50"] / before.ms["p50"] - 1
    verdict = "same"
    if change > THRESHOLD and after.ms["p20"] > before.ms["p80"]:
        verdict = "slower"
    elif change < -THRESHOLD and after.ms["p80"] < before.ms["p20"]:
        verdict = "faster"
    return Verdict(after, verdict, change)


def verdicts(before: list[Record], after: list[Record], rivals: bool = False) -> list[Verdict]:
    """Of everything in either, the worst first. Devices and thread counts that ``after`` did not run at all are left
    out; so are rivals, unless asked for."""
    old, new = ({each.key: each for each in records if rivals or each.ours} for records in (before, after))
    places = {(each.device, each.threads) for each in after}
    keys = [key for key in dict.fromkeys((*old, *new)) if key[:2] in places]
    found = [judge(old.get(key), new.get(key)) for key in keys]
    order = (*BAD, "faster", "repaired", "new", "same")
    return sorted(found, key=lambda each: (order.index(each.verdict), -abs(each.change or 0)))


def machine_change(before: list[Record], after: list[Record]) -> float | None:
    """How the rate of a plain matrix product changed, the median over what both measured: 0.1 is a tenth faster."""
    old = {each.key: each.gemm_gflops for each in before if each.gemm_gflops}
    changes = sorted(each.gemm_gflops / old[each.key] - 1 for each in after if each.gemm_gflops and each.key in old)
    return changes[len(changes) // 2] if changes else None


def run(before: list[Record], after: list[Record], rivals: bool, terminal: Console) -> int:
    found = verdicts(before, after, rivals)
    if not any(each.change is not None for each in found):
        terminal.print("nothing to compare: no time of the same device, threads, case and contestant in both files")
        return 2
    table = Table()
    for name in ("verdict", "change", "before, ms", "after, ms", "case", "mode", "threads", "contestant"):
        table.add_column(name, justify="right" if "ms" in name or name == "change" else "left")
    old = {each.key: each for each in before}
    for each in found:
        if each.verdict == "same":
            continue
        record = each.record
        times = [shown.ms and f"{shown.ms['p50']:.4g} ({shown.ms['p20']:.4g}-{shown.ms['p80']:.4g})" if shown else ""
                 for shown in (old.get(record.key), None if each.verdict == "missing" else record)]
        table.add_row(each.verdict, "" if each.change is None else f"{each.change:+.1%}", *times, record.case["name"],
                      record.mode, str(record.threads), f"{record.contestant} {record.precision}",
                      style=STYLES.get(each.verdict))
    if table.row_count:
        terminal.print(table)
    counts = Counter(each.verdict for each in found)
    terminal.print(", ".join(f"{number} {name}" for name, number in counts.items()))
    change = machine_change(before, after)
    if change is not None and abs(change) > THRESHOLD:
        terminal.print(f"[yellow]a plain matrix product runs {change:+.0%} as fast in the second file: the machine was "
                       "not the same, compare ratios (report) instead")
    return 1 if any(each.verdict in BAD for each in found) else 0
