"""Every shape that is measured, and the named suites of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xlstm_fused.cells import CELLS

MODES = ("inference", "training")


@dataclass(frozen=True)
class Case:
    """A layer and a batch: B sequences of T steps of I features, L layers of H units in N heads."""

    B: int
    T: int
    I: int
    H: int
    L: int = 1
    cell: str = "lstm"
    N: int = 1
    bidirectional: bool = False
    ragged: str = ""
    """"" for full sequences; "packed": the input is a PackedSequence; "padded": it is (T, B, I) with lengths."""
    resets: float = 0.0
    """The probability with which a step begins an episode."""
    state: bool = False
    """Whether the initial state is given, as by a caller who steps; of an LSTM only."""

    @property
    def name(self) -> str:
        parts = [f"B{self.B} T{self.T} I{self.I} H{self.H}"]
        parts += [f"L{self.L}"] * (self.L > 1) + ([self.cell] if self.cell != "lstm" else [])
        parts += [f"N{self.N}"] * (self.N > 1) + ["bidirectional"] * self.bidirectional
        parts += [self.ragged] * bool(self.ragged) + ["resets"] * bool(self.resets) + ["state"] * self.state
        return " ".join(parts)

    @property
    def K(self) -> int:
        """Directions."""
        return 2 if self.bidirectional else 1

    @property
    def is_plain(self) -> bool:
        """Whether this is one dense LSTM layer in one direction: what every rival can run."""
        return self == Case(self.B, self.T, self.I, self.H)

    @property
    def lengths(self) -> list[int]:
        """Of every sequence; if ragged, evenly spread up to T, so half of T on average, the longest first."""
        if not self.ragged:
            return [self.T] * self.B
        return [max(1, self.T * (self.B - b) // self.B) for b in range(self.B)]

    @property
    def gates(self) -> int:
        return len(CELLS[self.cell].gates)

    def flops(self, mode: str) -> int:
        """Multiplications and additions of the matrix products; a training step has three for each of inference."""
        rows, D = sum(self.lengths), self.H // self.N
        inputs = [self.I] + [self.K * self.H] * (self.L - 1)
        forward = sum(2 * rows * self.K * self.gates * self.H * (width + D) for width in inputs)
        return forward * (3 if mode == "training" else 1)


def shapes(*rows: tuple, **options) -> tuple[Case, ...]:
    """Cases from rows of (B, T, I, H) or (B, T, I, H, L)."""
    return tuple(Case(*row, **options) for row in rows)


# Sizes from 17 to 768 units, odd ones included.
CPU_GRID = shapes(
    (3, 301, 17, 40), (24, 96, 80, 96, 2), (12, 200, 192, 192), (20, 100, 320, 320), (5, 300, 640, 640),
    (32, 128, 100, 128, 2), (16, 256, 256, 256), (8, 512, 768, 768), (64, 128, 512, 512), (1, 400, 96, 96),
    (1, 1, 64, 128))
# The models of an introductory course: the first example, a sentiment classifier, a forecaster.
SLIDES = shapes((1, 1000, 10, 20), (32, 64, 100, 128, 2), (32, 96, 5, 64, 2))
BASIC = shapes((32, 128, 100, 128), (16, 256, 256, 256), (8, 512, 768, 768), (1, 1000, 10, 20))
RAGGED = (*shapes((12, 200, 192, 192), (128, 200, 64, 128), ragged="packed"),
          *shapes((12, 200, 192, 192), (128, 200, 64, 128), ragged="padded"))
RESETS = shapes((16, 128, 64, 128), (64, 128, 64, 256), resets=0.02)
BIDIRECTIONAL = shapes((32, 128, 100, 128), (16, 256, 256, 256, 2), bidirectional=True)
STEP = shapes((1, 1, 128, 128), (16, 1, 128, 128), state=True)
LONG = shapes((1, 65536, 32, 64))
SLSTM = tuple(replace(case, N=N) for case in shapes((16, 256, 256, 256), cell="slstm") for N in (1, 4, 8))

# The recurrence of a TiRex-like forecaster: 12 layers of sLSTM in 4 heads.
STACK = shapes(*((B, 128, 512, 512, 12) for B in (1, 64)), cell="slstm", N=4)

GPU_GRID = shapes(*((B, 1024, H, H) for H in (64, 128, 256, 512, 768, 1024) for B in (1, 8, 16, 32, 64)))
GPU_CORE = shapes(*((16, 1024, H, H) for H in (128, 256, 512, 768, 1024)), (1, 1024, 512, 512), (64, 1024, 512, 512))
# FlashRNN's own benchmark: 768 units in one head, in 6 and in 12; and smaller ones of one head.
GPU_HEADS = (*shapes((16, 1024, 768, 768), (16, 1024, 256, 256), (16, 1024, 128, 128)),
             *(Case(16, 1024, 768, 768, cell=cell, N=N) for cell in ("lstm", "slstm") for N in (6, 12)),
             Case(16, 1024, 256, 256, cell="slstm", N=4), Case(16, 1024, 256, 256, cell="slstm"))
GPU_RESETS = shapes((64, 128, 64, 128), (64, 128, 64, 256), (64, 128, 64, 512), resets=0.02)
GPU_LAYOUTS = (*shapes((64, 512, 256, 256), (16, 1024, 512, 512), ragged="packed"),
               *shapes((64, 512, 256, 256), ragged="padded"),
               *shapes((32, 512, 256, 256, 2), bidirectional=True), *STEP, *LONG)

# Every kind of input in the smallest sizes: for sanitizers, and to rehearse a run.
TINY = (*shapes((3, 5, 4, 8), (2, 33, 16, 64, 2)), Case(3, 5, 4, 8, bidirectional=True), Case(3, 5, 4, 8, state=True),
        Case(5, 7, 4, 8, ragged="packed"), Case(5, 7, 4, 8, ragged="padded"), Case(3, 7, 4, 8, resets=0.3),
        Case(3, 5, 4, 8, cell="slstm", N=2), Case(3, 5, 4, 8, N=2))

SUITES = {
    "cpu-grid": CPU_GRID, "slides": SLIDES, "basic": BASIC, "ragged": RAGGED, "resets": RESETS,
    "bidirectional": BIDIRECTIONAL, "step": STEP, "slstm": SLSTM, "long": LONG, "stack": STACK, "gpu-core": GPU_CORE,
    "gpu-grid": GPU_GRID, "gpu-heads": GPU_HEADS, "gpu-resets": GPU_RESETS, "gpu-layouts": GPU_LAYOUTS, "tiny": TINY,
}
CPU_SUITES = ("cpu-grid", "slides", "basic", "ragged", "resets", "bidirectional", "step", "slstm", "long")
GPU_SUITES = ("gpu-core", "gpu-grid", "gpu-heads", "gpu-resets", "gpu-layouts")

# One case of each kind, none of which takes long with the slowest rival.
QUICK = (Case(1, 1000, 10, 20), Case(32, 128, 100, 128), Case(12, 200, 192, 192), Case(32, 96, 5, 64, 2),
         Case(12, 200, 192, 192, ragged="packed"), Case(16, 128, 64, 128, resets=0.02),
         Case(16, 64, 64, 128, bidirectional=True), Case(1, 1, 128, 128, state=True),
         Case(8, 64, 64, 128, cell="slstm", N=4))


def select(suites: list[str], pattern: str = "") -> list[Case]:
    """The cases of these suites, each once, whose name contains ``pattern``, which may be the whole name."""
    found = list(dict.fromkeys(case for suite in suites for case in SUITES[suite]))
    return [case for case in found if case.name == pattern] or [case for case in found if pattern in case.name]
