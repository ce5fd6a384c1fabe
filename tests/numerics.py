"""The error table of docs/numerics.md.

    python tests/numerics.py

measures on this machine and writes it between the page's markers. Triton's rows come from its interpreter.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
from collections import defaultdict
from copy import deepcopy
from pathlib import Path

import torch

from xlstm_fused import FusedxLSTM
from xlstm_fused.backends import ORDER, backends
from xlstm_fused.cells import CELLS
from xlstm_fused.dtypes import FLOATING

PAGE = Path(__file__).resolve().parents[1] / "docs/numerics.md"
BEGIN, END = "<!-- errors: begin -->", "<!-- errors: end -->"
MEASURED = [name for name in ORDER if name != "cuda"]
PROBLEMS, T, B, I, H = 20, 32, 4, 24, 40
# Of Triton, whose interpreter takes seconds for each.
INTERPRETED = 2


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rows() -> list[tuple[str, str]]:
    """``(dtype, backend)`` of every row: what each backend runs, but the reference in float64, which is the measure."""
    return [(name_of(dtype), backend) for dtype in FLOATING for backend in MEASURED
            if (dtype, backend) not in ((torch.float64, "triton"), (torch.float64, "reference"))]


def results(layer: FusedxLSTM, x: torch.Tensor, hx, cotangent: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output, and the gradients of input, initial states and parameters, by name."""
    states = hx if isinstance(hx, tuple) else (hx,)
    wanted = {"x": x} | dict(zip(CELLS[layer.cell].states, states)) | dict(layer.named_parameters())
    output, _ = layer(x, hx)
    return {"output": output} | dict(zip(wanted, torch.autograd.grad(output, list(wanted.values()), cotangent)))


def random_problem(cell: str, dtype: torch.dtype, seed: int):
    """``(layer, x, hx, cotangent)`` in float64, all numbers rounded to ``dtype``."""
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=random).to(dtype).double()

    layer = FusedxLSTM(I, H, cell=cell, backend="reference").to(dtype).double()
    hx = tuple(randn(1, B, H).abs() + 1 if name == "n" else randn(1, B, H) for name in CELLS[cell].states)
    return layer, randn(T, B, I), hx if len(hx) > 1 else hx[0], randn(T, B, H)


def moved(value, dtype):
    """A leaf in ``dtype``, or a tuple of them."""
    if isinstance(value, tuple):
        return tuple(moved(each, dtype) for each in value)
    return value.to(dtype, copy=True).requires_grad_()


def errors(cell: str, dtype: torch.dtype, backend: str, problems: int = PROBLEMS) -> dict[str, tuple[float, float]]:
    """``(largest, rms)`` error over all problems in units of the rms of the exact result: of the output, and of the
    gradient that has the worst."""
    largest, squares, exact = defaultdict(float), defaultdict(float), defaultdict(float)
    for seed in range(problems):
        layer, x, hx, cotangent = random_problem(cell, dtype, seed)
        truth = results(layer, *(moved(value, torch.float64) for value in (x, hx, cotangent)))
        layer = deepcopy(layer).to(dtype)
        layer.backend = backend
        got = results(layer, *(moved(value, dtype) for value in (x, hx, cotangent)))
        for name, want in truth.items():
            error, unit = got[name].double() - want, want.square().mean().sqrt()
            largest[name] = max(largest[name], (error.abs().max() / unit).item())
            squares[name] += error.square().sum().item()
            exact[name] += want.square().sum().item()
    rms = {name: (squares[name] / exact[name]) ** 0.5 for name in squares}
    gradients = [name for name in rms if name != "output"]
    return {"output": (largest["output"], rms["output"]),
            "gradients": (max(largest[name] for name in gradients), max(rms[name] for name in gradients))}


def measured(names: list[str], problems: int) -> dict[str, dict]:
    """The rows of some backends, by dtype and backend: ``{cell: {"output": .., "gradients": ..}}``."""
    return {f"{dtype} {backend}": {cell: errors(cell, getattr(torch, dtype), backend, problems) for cell in CELLS}
            for dtype, backend in rows() if backend in names}


def interpreted() -> dict[str, dict]:
    """Triton's rows, in a process of their own: it decides when kernels are defined whether to interpret them."""
    done = subprocess.run([sys.executable, __file__, "triton"], env={**os.environ, "TRITON_INTERPRET": "1"}, text=True,
                          stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def table(found: dict[str, dict]) -> str:
    columns = [(cell, what) for cell in CELLS for what in ("output", "gradients")]
    lines = ["| dtype | backend | " + " | ".join(f"{cell}, {what}" for cell, what in columns) + " |",
             "|" + "---|" * (2 + len(columns))]
    for dtype, backend in rows():
        cells = found[f"{dtype} {backend}"]
        figures = ("{:.1e}, {:.1e}".format(*cells[cell][what]) for cell, what in columns)
        lines.append(f"| {dtype} | {backend} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:] == ["triton"]:
        from gpu_without_gpu.interpreter import repair_bfloat16

        importlib.import_module("xlstm_fused.backends.triton").device_type_for_tests = "cpu"
        repair_bfloat16()
        print(json.dumps(measured(["triton"], INTERPRETED)))
        return
    if not backends()["cpu"].ready:
        raise SystemExit(f"the cpu backend is not ready: {backends()['cpu'].reason}")
    text = table(measured(["cpu", "reference"], PROBLEMS) | interpreted())
    note = (f"Measured by `python tests/numerics.py` on {platform.machine()} with torch {torch.__version__}: "
            f"{PROBLEMS} random layers,\n{INTERPRETED} for Triton; T = {T}, B = {B}, I = {I}, H = {H}.")
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n\n{note}\n{END}{after}")
    print(text)


if __name__ == "__main__":
    main()
