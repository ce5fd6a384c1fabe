"""The error table of docs/numerics.md: it has every dtype, backend and cell, and its figures hold."""

import re

import pytest
import torch
from numerics import BEGIN, END, PAGE, errors, rows
from tolerances import HALF_FACTOR, RELATIVE

from xlstm_fused.backends import backends
from xlstm_fused.cells import CELLS


@pytest.fixture(scope="module")
def table():
    """``{(dtype, backend): {(cell, what): (largest, rms)}}``."""
    text = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    header, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
                         if line.startswith("|")]
    columns = [tuple(name.split(", ")) for name in header[2:]]
    return {(dtype, backend): {column: tuple(map(float, re.findall(r"[\d.]+e[+-]\d+", figure)))
                               for column, figure in zip(columns, figures, strict=True)}
            for dtype, backend, *figures in lines}


def test_it_has_every_row_and_column(table):
    assert list(table) == rows()
    for figures in table.values():
        assert list(figures) == [(cell, what) for cell in CELLS for what in ("output", "gradients")]
        assert all(0 < rms <= largest for largest, rms in figures.values())


def test_it_keeps_to_the_tolerances(table):
    for (dtype, backend), figures in table.items():
        for column, (_, rms) in figures.items():
            allowed = RELATIVE.get(getattr(torch, dtype))
            assert rms <= (allowed or HALF_FACTOR * table[dtype, "reference"][column][1]), (dtype, backend, column)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", [name for name in ("cpu", "reference") if backends()[name].ready])
def test_its_figures_are_of_this_code(table, cell, backend):
    """In bfloat16, where an error is much the same whatever the instruction set."""
    for what, (_, rms) in errors(cell, torch.bfloat16, backend, problems=3).items():
        assert rms == pytest.approx(table["bfloat16", backend][cell, what][1], rel=0.5), what
