"""Long sequences, tensors past 2^31 elements, and a short soak."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tolerances import assert_close

from xlstm_fused import recurrence
from xlstm_fused.backends import backends, cpu
from xlstm_fused.cells import CELLS
from xlstm_fused.rows import Rows

pytestmark = pytest.mark.skipif(not backends()["cpu"].ready, reason="the cpu backend is not built")


@pytest.mark.parametrize("cell", CELLS)
def test_a_million_steps(cell):
    """Every state is finite, and float32 is as close to float64 at the end as at the start: errors do not add up."""
    T, H = 1_000_000, 2
    wx, weight = torch.randn(T, 1, 4 * H), torch.randn(4 * H, H) / 2
    output, state = recurrence(wx, weight, cell=cell, backend="cpu")
    truth, true_state = recurrence(wx.double(), weight.double(), cell=cell, backend="cpu")
    assert output.isfinite().all() and all(part.isfinite().all() for part in state)
    error = (output - truth).flatten(1).norm(dim=1)
    tenth = T // 10
    assert error[-tenth:].square().mean().sqrt() <= 2 * error[:tenth].square().mean().sqrt()
    assert_close(output, truth)
    for part, true in zip(state, true_state):
        assert_close(part, true)


# 4 GiB for the gates alone, in bfloat16.
LARGE = os.environ.get("XLSTM_FUSED_LARGE")


@pytest.mark.skipif(not LARGE, reason="needs 7 GiB of memory and minutes: make large")
@pytest.mark.parametrize("reverse", (False, True))
def test_more_than_two_to_the_31_elements(reverse):
    """The last sequence of a batch whose gates have more elements than an int32 counts is as it is alone."""
    T, B, D = 4, 1025, 2**17
    assert T * B * 4 * D > 2**31
    # One head per unit but two: the matrix stays small.
    N, D = D // 2, 2
    wx = torch.zeros(T * B, 1, 4, N, D, dtype=torch.bfloat16)
    last = slice(T * B - T, None)
    wx[last].normal_()
    wx[:T].normal_()
    weight = (torch.randn(1, 4, N, D, D) / 2).bfloat16()
    rest = None, None, None, None, None, False, None

    def ends(values):
        return torch.cat((values[:T], values[last]))

    # Batch first: the last sequence is the last T rows.
    output, _, _ = cpu.inference(wx, weight, *rest, Rows.dense(T, B, True), "lstm", reverse)
    expected, _, _ = cpu.inference(ends(wx), weight, *rest, Rows.dense(T, 2, True), "lstm", reverse)
    assert torch.equal(ends(output), expected) and not output[T:-T].any()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_threads_of_a_short_soak():
    script = Path(__file__).with_name("soak.py")
    done = subprocess.run([sys.executable, str(script), "200"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
