"""What is shown in the terminal: the progress bar, and the table of what was measured."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .records import Record
from .tables import by_place, cell, short


class UserError(Exception):
    """Something to tell the user in one line."""


def progress(console: Console) -> Progress:
    return Progress(BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
                    TimeRemainingColumn(), TextColumn("{task.description}"), console=console)


def table(records: Iterable[Record]) -> Table:
    """A row for each case, mode, thread count and precision: our time, and how many times as long each rival takes."""
    places = by_place(records)
    rivals = list(dict.fromkeys(each.contestant for rows in places.values() for each in rows if not each.ours))
    result = Table(box=box.SIMPLE_HEAD, caption="times longer than ours; below 1 the rival is faster",
                   title_justify="left", caption_justify="left")
    for name in ("case", "mode", "threads", "precision"):
        result.add_column(name, no_wrap=name == "case")
    for name in ("ours, ms", "p20-p80", "of sgemm", *map(short, rivals)):
        result.add_column(name, justify="right")
    for (_, threads, case, mode), rows in places.items():
        for precision in dict.fromkeys(each.precision for each in rows):
            mine = next((each for each in rows if each.ours and each.precision == precision), None)
            theirs = {each.contestant: each for each in rows if not each.ours and each.precision == precision}
            own = ("-", "-", "-")
            if mine is not None and mine.ms is None:
                own = (mine.status, "-", "-")
            elif mine is not None:
                spread = (mine.ms["p80"] - mine.ms["p20"]) / mine.ms["p50"]
                own = (f"{mine.ms['p50']:.3g}", f"{spread:.0%}", f"{mine.gemm_share:.0%}")
            result.add_row(case, mode, str(threads), precision, *own,
                           *(cell(theirs[name]) if name in theirs else "" for name in rivals))
    return result
