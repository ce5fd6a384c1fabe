"""Tables and pictures of result files, for a reader."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .plots import all_figures
from .records import Record
from .tables import cell, exclusions, markdown, provenance, ratio_table, rival_summary, short

EXPLANATION = """\
Times are medians. A ratio is a rival's time over ours, the median over pairs of runs one after the other: above 1 ours
is faster. Rivals whose results were wrong or that failed have no time. Details: `benchmarks/README.md`.
"""


def by_device(records: list[Record]) -> dict[tuple[str, int], list[Record]]:
    found = {}
    for record in records:
        found.setdefault((record.device, record.threads), []).append(record)
    return found


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def detail_table(records: list[Record]) -> str:
    """Every measurement, with what it was judged by."""
    rows = []
    for each in sorted(records, key=lambda each: each.key):
        rows.append([
            each.case["name"], each.mode, f"{short(each.contestant)} {each.precision}", each.status,
            *([f"{each.ms[name]:.4g}" for name in ("p20", "p50", "p80")] if each.ms else [""] * 3),
            cell(each) if each.ratios else "", number(each.graph_ms and each.graph_ms["p50"], ".4g"),
            number(each.gemm_share, ".0%"), number(each.floor_share, ".0%"), number(each.first_call_s, ".3g"),
            number(None if each.peak_bytes is None else each.peak_bytes / 2**20, ".1f"), number(each.error, ".1e")])
    return markdown(["case", "mode", "contestant", "status", "p20, ms", "p50, ms", "p80, ms", "ratio", "as graph, ms",
                     "of sgemm", "of floor", "first call, s", "peak, MiB", "error"], rows)


def kernel_lines(records: list[Record]) -> list[str]:
    return [f"{each.case['name']}, {each.mode}, {each.contestant} {each.precision}: " + "; ".join(
        f"`{kernel}`" for kernel in each.kernels) for each in records if each.kernels]


def bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def write(records: list[Record], out: Path, sections: Iterable[str] = ()) -> Path:
    """Write ``report.md`` and its pictures into the folder ``out``; returns the path of the report. ``sections``, of
    Markdown, come before the records'."""
    out.mkdir(parents=True, exist_ok=True)
    parts = ["# Benchmark", EXPLANATION, *sections]
    for number, ((device, threads), group) in enumerate(by_device(records).items()):
        title = f"{device}, {threads} {'thread' if threads == 1 else 'threads'}"
        parts += [f"## {title}", provenance(group)]
        if any(each.ratios for each in group):
            parts += ["### Rivals", rival_summary(group)]
        for precision in dict.fromkeys(each.precision for each in group):
            parts += [f"### Cases, {precision}", ratio_table(group, precision)]
        for name, figure in all_figures(group, title):
            if figure is not None:
                file = f"{number}-{name}.png"
                figure.savefig(out / file, dpi=110)
                parts.append(f"![{name} on {title}]({file})")
        for heading, lines in (("Without a time", exclusions(group)), ("Kernels", kernel_lines(group))):
            if lines:
                parts += [f"### {heading}", bullets(lines)]
        parts += ["### All measurements", detail_table(group)]
    path = out / "report.md"
    path.write_text("\n\n".join(part.strip() for part in parts) + "\n")
    return path
