"""The pictures of a report. Each function draws one figure, or returns None where the records have nothing for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from .cases import MODES
from .records import Record
from .tables import short

MARKERS = "osD^vP*X<>hd"


def _log_axis(axis) -> None:
    """A logarithmic axis with readable numbers."""
    axis.set_major_locator(LogLocator(10, (1, 2, 5)))
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(NullFormatter())


def line_name(record: Record) -> str:
    return f"{short(record.contestant)} {record.precision}"


def ratios(records: list[Record], title: str) -> Figure | None:
    """How many times as long as ours each rival takes, per case, with the spread from p20 to p80."""
    records = [each for each in records if each.precision in each.ratios]
    if not records:
        return None
    cases = list(dict.fromkeys(each.case["name"] for each in records))[::-1]
    rivals = list(dict.fromkeys(map(line_name, records)))
    modes = [mode for mode in MODES if any(each.mode == mode for each in records)]
    figure = Figure((5 + 5 * len(modes), 2.2 + 0.32 * len(cases)), layout="constrained")
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for panel, mode in zip(panels, modes):
        for index, rival in enumerate(rivals):
            chosen = [each for each in records if each.mode == mode and line_name(each) == rival]
            spreads = [each.ratios[each.precision] for each in chosen]
            middle = numpy.array([each["p50"] for each in spreads])
            reach = [middle - [each["p20"] for each in spreads], [each["p80"] for each in spreads] - middle]
            panel.errorbar(middle, [cases.index(each.case["name"]) for each in chosen], xerr=numpy.maximum(reach, 0),
                           fmt=MARKERS[index % len(MARKERS)], label=rival, capsize=2, markersize=5)
        panel.axvline(1, color="black", linewidth=1)
        panel.set(xscale="log", title=mode, xlabel="rival's time / ours (above 1: ours is faster)",
                  yticks=range(len(cases)), yticklabels=cases)
        _log_axis(panel.xaxis)
        panel.grid(axis="both", alpha=0.3)
    panels[0].legend(loc="best", fontsize="small")
    figure.suptitle(title)
    return figure


def step_times(records: list[Record], against: str, title: str) -> Figure | None:
    """Time per step against H (a panel for each B), or against B (a panel for each H), where I = H and at least three
    values of it were measured with everything else equal."""
    other = "B" if against == "H" else "H"
    groups = {}
    for record in records:
        case = record.shape
        if record.ms and case.I == case.H:
            groups.setdefault((record.mode, replace(case, I=0, **{against: 0})), []).append(record)
    groups = {key: group for key, group in groups.items() if len({each.case[against] for each in group}) >= 3}
    if not groups:
        return None
    modes = [mode for mode in MODES if any(key[0] == mode for key in groups)]
    columns = list(dict.fromkeys(case for _, case in groups))
    figure = Figure((1.5 + 3.6 * len(columns), 1 + 3.4 * len(modes)), layout="constrained")
    panels = figure.subplots(len(modes), len(columns), sharey="row", squeeze=False)
    names = list(dict.fromkeys(line_name(each) for group in groups.values() for each in group))
    for (mode, case), group in groups.items():
        panel = panels[modes.index(mode)][columns.index(case)]
        for name in names:
            line = sorted((each.case[against], 1e3 * each.ms["p50"] / case.T) for each in group
                          if line_name(each) == name)
            if line:
                index = names.index(name)
                panel.plot(*zip(*line), marker=MARKERS[index % len(MARKERS)], color=f"C{index % 10}", markersize=4,
                           label=name)
        kind = f"{other}={getattr(case, other)}, T={case.T}" + (f", {case.cell} N={case.N}" if case.N > 1 else "")
        panel.set(xscale="log", yscale="log", xlabel=against, title=f"{mode}, {kind}")
        panel.set_xticks(sorted({each.case[against] for each in group}))
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
        _log_axis(panel.yaxis)
        panel.grid(alpha=0.3)
    for row in panels:
        row[0].set_ylabel("us per step")
    panels[0][0].legend(fontsize="x-small")
    figure.suptitle(title)
    return figure


def heat_map(records: list[Record], rival: str, precision: str, ours: str, title: str) -> Figure | None:
    """The ratio of one rival to ours over H and B, a panel for each mode, where I = H and T is the same."""
    chosen = [each for each in records if each.contestant == rival and each.precision == precision
              and ours in each.ratios and each.shape.is_plain and each.shape.I == each.shape.H]
    lengths = {each.case["T"] for each in chosen}
    T = max(lengths, key=lambda length: sum(each.case["T"] == length for each in chosen), default=None)
    chosen = [each for each in chosen if each.case["T"] == T]
    heights, widths = (sorted({each.case[name] for each in chosen}) for name in "HB")
    if len(heights) < 2 or len(widths) < 2:
        return None
    modes = [mode for mode in MODES if any(each.mode == mode for each in chosen)]
    figure = Figure((1.5 + 4.5 * len(modes), 1.5 + 0.5 * len(heights)), layout="constrained")
    panels = figure.subplots(1, len(modes), squeeze=False)[0]
    for panel, mode in zip(panels, modes):
        grid = numpy.full((len(heights), len(widths)), numpy.nan)
        for each in chosen:
            if each.mode == mode:
                grid[heights.index(each.case["H"]), widths.index(each.case["B"])] = each.ratios[ours]["p50"]
        image = panel.imshow(grid, cmap="RdYlGn", norm=LogNorm(1 / 8, 8), origin="lower", aspect="auto")
        for (row, column), value in numpy.ndenumerate(grid):
            if not numpy.isnan(value):
                panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="small")
        panel.set(title=f"{mode}, T={T}", xlabel="B", ylabel="H", xticks=range(len(widths)), xticklabels=widths,
                  yticks=range(len(heights)), yticklabels=heights)
    bar = figure.colorbar(image, ax=panels, label="rival's time / ours")
    _log_axis(bar.ax.yaxis)
    figure.suptitle(f"{short(rival)} {precision} / ours {ours}; {title}")
    return figure


def roofline(records: list[Record], title: str) -> Figure | None:
    """Of everyone and every case: GFLOP/s against the operations that a byte of unavoidable traffic allows, below the
    rates of a large copy and of a large product in that precision."""
    records = [each for each in records if each.ms and each.copy_gbs and each.gemm_gflops]
    if not records:
        return None
    modes = [mode for mode in MODES if any(each.mode == mode for each in records)]
    figure = Figure((1.5 + 5 * len(modes), 4.5), layout="constrained")
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(map(line_name, records)))
    precisions = list(dict.fromkeys(each.precision for each in records))
    for panel, mode in zip(panels, modes):
        chosen = [each for each in records if each.mode == mode]
        for index, name in enumerate(names):
            points = [(each.flops / each.traffic_bytes, each.flops / each.ms["p50"] / 1e6) for each in chosen
                      if line_name(each) == name]
            if points:
                panel.plot(*zip(*points), MARKERS[index % len(MARKERS)], color=f"C{index % 10}", markersize=4,
                           label=name)
        intensities = [each.flops / each.traffic_bytes for each in chosen]
        width = numpy.geomspace(min(intensities), max(intensities), 100)
        copy = numpy.median([each.copy_gbs for each in chosen])
        for number, precision in enumerate(precisions):
            rates = [each.gemm_gflops for each in chosen if each.precision == precision]
            if rates:
                panel.plot(width, numpy.minimum(copy * width, numpy.median(rates)), "k", linewidth=1,
                           linestyle=("-", "--", ":", "-.")[number % 4], label=f"copy and product, {precision}")
        panel.set(xscale="log", yscale="log", title=mode, xlabel="operations per byte of input, output and parameters")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("GFLOP/s")
    panels[0].legend(fontsize="x-small")
    figure.suptitle(title)
    return figure


def all_figures(records: list[Record], title: str) -> Iterable[tuple[str, Figure]]:
    """File names (without suffix) and figures for the records of one device and thread count."""
    yield "ratios", ratios(records, title)
    for name in ("H", "B"):
        yield f"step-time-{name}", step_times(records, name, title)
    yield "roofline", roofline(records, title)
    pairs = {(each.contestant, each.precision, ours) for each in records for ours in each.ratios}
    for rival, precision, ours in sorted(pairs):
        slug = "".join(letter if letter.isalnum() else "-" for letter in f"{rival}-{precision}-{ours}").lower()
        yield f"heat-{slug}", heat_map(records, rival, precision, ours, title)
