"""What one measurement says, and the files of them: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy

from .cases import Case

SCHEMA = 1
STATUSES = ("ok", "checked", "wrong", "failed")


class Spread(dict):
    """Quantiles of repeated measurements: the keys are p20, p50 and p80."""

    @classmethod
    def of(cls, samples: Iterable[float]) -> Spread:
        return cls(zip(("p20", "p50", "p80"), (float(f"{value:.6g}")
                                               for value in numpy.percentile(list(samples), (20, 50, 80)))))


@dataclass
class Record:
    """One contestant in one mode of one case. The fields are described in ``benchmarks/README.md``."""

    case: dict
    mode: str
    contestant: str
    precision: str
    device: str
    threads: int
    status: str
    schema: int = SCHEMA
    ours: bool = False
    version: str = ""
    reason: str = ""
    time: str = ""
    commit: str | None = None
    dirty: bool | None = None
    source: str = ""
    versions: dict = field(default_factory=dict)
    error: float | None = None
    error_of: str = ""
    output_dtype: str = ""
    ms: dict | None = None
    samples: int = 0
    calls: int = 0
    ratios: dict = field(default_factory=dict)
    graph_ms: dict | None = None
    graph_ratios: dict = field(default_factory=dict)
    graph_reason: str = ""
    first_call_s: float | None = None
    peak_bytes: int | None = None
    flops: int = 0
    gemm_gflops: float | None = None
    gemm_share: float | None = None
    traffic_bytes: int = 0
    copy_gbs: float | None = None
    floor_ms: float | None = None
    floor_share: float | None = None
    clocks: dict = field(default_factory=dict)
    kernels: list = field(default_factory=list)

    def __post_init__(self):
        if self.schema != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}, got {self.schema}")
        if self.status not in STATUSES:
            raise ValueError(f"status: expected one of {', '.join(STATUSES)}, got {self.status!r}")
        if (self.status == "ok") != (self.ms is not None):
            raise ValueError(f"ms: expected just where status is 'ok', got {self.ms} with {self.status!r}")
        for spread in (self.ms, self.graph_ms, *self.ratios.values(), *self.graph_ratios.values()):
            if spread is not None and list(spread) != ["p20", "p50", "p80"]:
                raise ValueError(f"expected p20, p50 and p80, got {list(spread)}")

    @property
    def shape(self) -> Case:
        return Case(**{name: value for name, value in self.case.items() if name != "name"})

    @property
    def key(self) -> tuple:
        """What a measurement is of; a later one of the same key replaces an earlier one."""
        return self.device, self.threads, self.case["name"], self.mode, self.contestant, self.precision

    @property
    def place(self) -> tuple:
        """Which measurements are comparable as times: those of one device, case and mode."""
        return self.key[:4]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Record:
        values = json.loads(line)
        unknown = set(values) - {each.name for each in fields(cls)}
        if unknown:
            raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
        return cls(**values)


def case_fields(case: Case) -> dict:
    return {"name": case.name, **asdict(case)}


def load(paths: Iterable[Path]) -> list[Record]:
    """The records of these files, of each key the last one; ValueError names the file and line that is no record."""
    found = {}
    for path in paths:
        for number, line in enumerate(Path(path).read_text().splitlines(), 1):
            try:
                record = Record.from_json(line)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{Path(path).name}, line {number}: {error}") from None
            found[record.key] = record
    return list(found.values())


def append(path: Path, record: Record) -> None:
    """Add a line; it is on disk when this returns, whatever becomes of the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(record.to_json() + "\n")


def geometric_mean(values: Iterable[float]) -> float:
    return float(numpy.exp(numpy.mean(numpy.log(list(values)))))


def baseline_ratio(record: Record, ours_precision: str | None = None, graph: bool = False) -> float | None:
    """How many times as long as ours a rival took, the median; None where they were not run side by side."""
    ratio = (record.graph_ratios if graph else record.ratios).get(ours_precision or record.precision)
    return ratio and ratio["p50"]
