"""Records as Markdown tables, for reports and for the README."""

from __future__ import annotations

from collections.abc import Iterable

from .cases import MODES
from .records import Record, baseline_ratio, geometric_mean

BASELINE = "nn.LSTM"


def by_place(records: Iterable[Record]) -> dict[tuple, list[Record]]:
    """Grouped by device, threads, case and mode, in the order in which they come."""
    places = {}
    for record in records:
        places.setdefault(record.place, []).append(record)
    return places


def short(contestant: str) -> str:
    return contestant.replace("xlstm_fused ", "our ").replace("FusedxLSTMCell", "our cell,")


def cell(record: Record, precision: str | None = None) -> str:
    """How many times as long as ours: 2.34x, or the status of what has no time."""
    if record.status not in ("ok", "checked"):
        return record.status
    ratio = baseline_ratio(record, precision)
    return "ok" if ratio is None else f"{ratio:.3g}x"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ratio_table(records: list[Record], precision: str = "fp32") -> str:
    """Of one device and thread count: every case with our time and the ratio of every rival, both modes."""
    records = [each for each in records if each.precision == precision]
    rivals = list(dict.fromkeys(each.contestant for each in records if not each.ours))
    rows = []
    for (_, _, case, mode), group in by_place(records).items():
        ours = next((each for each in group if each.ours), None)
        theirs = {each.contestant: each for each in group if not each.ours}
        rows.append([case, mode, "-" if ours is None else f"{ours.ms['p50']:.3g}" if ours.ms else ours.status,
                     *(cell(theirs[name]) if name in theirs else "" for name in rivals)])
    return markdown(["case", "mode", "ours, ms", *map(short, rivals)], rows)


def rival_summary(records: list[Record]) -> str:
    """Each rival and mode: the geometric mean of the ratios, the worst case for us, and how often ours is slower."""
    groups = {}
    for record in records:
        for ours_precision, ratio in record.ratios.items():
            key = record.contestant, record.precision, ours_precision, record.mode
            groups.setdefault(key, []).append((ratio["p50"], record.case["name"]))
    rows = []
    for (rival, precision, ours_precision, mode), values in sorted(
            groups.items(), key=lambda item: (item[0][0] != BASELINE, item[0][:3], MODES.index(item[0][3]))):
        worst, case = min(values)
        losses = sum(ratio < 1 for ratio, _ in values)
        rows.append([f"{short(rival)} {precision}", f"ours {ours_precision}", mode, str(len(values)),
                     f"{geometric_mean(ratio for ratio, _ in values):.3g}x", f"{worst:.3g}x ({case})", str(losses)])
    return markdown(["rival", "against", "mode", "cases", "geometric mean", "least", "ours slower"], rows)


def exclusions(records: list[Record]) -> list[str]:
    """A line for each result that is wrong or has failed, and so has no time; equal ones together."""
    found = {}
    for record in records:
        if record.status in ("wrong", "failed"):
            key = f"{record.contestant} {record.precision}: {record.status}", record.reason
            found.setdefault(key, []).append(f"{record.case['name']}, {record.mode}")
    return [f"{what} ({reason}): {'; '.join(dict.fromkeys(cases))}" for (what, reason), cases in found.items()]


def provenance(records: list[Record]) -> str:
    """Device, versions, commit and days of the measurements, in one line."""
    def several(values):
        return ", ".join(sorted({str(value) for value in values if value}))

    commits = {f"{each.commit or 'source ' + each.source}{' with changes' if each.dirty else ''}" for each in records}
    versions = several(f"{name} {number}" for each in records for name, number in each.versions.items()
                       if name not in ("python", "xlstm-fused", "numpy"))
    return f"commit {several(commits)}; {versions}; {several(each.time[:10] for each in records)}"
