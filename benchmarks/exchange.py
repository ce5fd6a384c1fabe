"""Build and run ``exchange.cu``: what it costs on this GPU that processors meet once per step."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from . import machine
from .console import UserError
from .tables import markdown

SOURCE = Path(__file__).with_name("exchange.cu")
FILE = "exchange.jsonl"


def architecture() -> str:
    """Of the GPU that is there, or of the first that has clusters."""
    if not torch.cuda.is_available():
        return "sm_90a"
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def build(folder: Path) -> Path:
    """The program, compiled; UserError where nvcc is missing or fails."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise UserError("nvcc is not on the PATH; the exchange is measured by a CUDA program")
    program = folder / "exchange"
    command = [nvcc, "-O3", "-std=c++17", f"-arch={architecture()}", "-o", str(program), str(SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"nvcc: {result.stderr.strip() or result.stdout.strip()}")
    return program


def rows(lines: list[dict]) -> list[list[str]]:
    """Of the table: each way of meeting, how many meet, and what it costs."""
    found = []
    for line in lines:
        if line["way"] == "resident":
            found.append([f"clusters of {line['ctas']} at once, {line['shared'] >> 10} KiB each", str(line["ctas"]),
                          str(line["clusters"])])
        else:
            found.append([line["way"], str(line["ctas"]), f"{line['us']:.3f} us" if line["ok"] else "wrong values"])
    return found


def section(path: Path) -> str:
    """Of a report: what the file of an earlier run says, as Markdown."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return "## Exchange\n\n" + markdown(["way", "CTAs", "per meeting"], rows(lines))


def run(out: Path | None, compile_only: bool, terminal: Console) -> int:
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        if compile_only:
            terminal.print(f"exchange.cu compiles for {architecture()}")
            return 0
        if not torch.cuda.is_available():
            raise UserError("no CUDA device here; --compile-only builds the program")
        result = subprocess.run([str(program)], capture_output=True, text=True)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    about = {"device": machine.device_name("cuda"), "time": machine.now(), **machine.code()}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(line | about) + "\n" for line in lines))
    table = Table("way", "CTAs", "per meeting")
    for row in rows(lines):
        table.add_row(*row)
    terminal.print(table)
    if result.returncode:
        terminal.print(result.stderr.strip(), style="red", highlight=False)
    return 1 if result.returncode or not all(line.get("ok", True) for line in lines) else 0
