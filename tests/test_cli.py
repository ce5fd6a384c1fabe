import math
import re

import pytest
import torch

from xlstm_fused import compare, demo
from xlstm_fused.__main__ import main

TINY = ["--epochs", "2", "--hidden-size", "4", "--context", "8", "--horizon", "3", "--period", "6"]


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "waves.csv"
    rows = [f"{t},{math.sin(t * math.pi / 3) + 0.01 * t:.5f},word" for t in range(120)]
    path.write_text("\n".join(["step,wave,text", *rows]) + "\n")
    return path


def test_info_has_every_backend(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("reference  ready", "cuda", "triton", "cpu"))


@pytest.mark.parametrize("cell", ["lstm", "slstm"])
def test_demo_on_a_file(csv, tmp_path, capsys, cell):
    arguments = ["--data", str(csv), "--column", "wave", "--cell", cell, "--backend", "reference", "--output",
                 str(tmp_path)]
    assert main(["demo", *TINY, *arguments]) == 0
    printed = capsys.readouterr().out
    assert "backend reference" in printed and "seasonal naive" in printed
    assert ("learning curves: largest relative difference" in printed) == (cell == "lstm")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options, message", [
    (["--data", "nowhere.csv"], "--data: nowhere.csv: No such file"),
    (["--data", "CSV", "--column", "foam"], "no column 'foam'; it has: step, wave, text"),
    (["--data", "CSV", "--column", "text"], "not numbers"),
    (["--data", "CSV", "--column", "wave", "--context", "110"], "too short: 120 values"),
    (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
])
def test_mistakes_are_one_line_and_status_2(csv, tmp_path, capsys, options, message):
    options = [str(csv) if each == "CSV" else each for each in options]
    assert main(["demo", *TINY, "--output", str(tmp_path), *options]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.startswith("error: ") and errors.count("\n") == 1


def test_learning_curves_that_part_anywhere_are_an_error():
    run = demo.Run(None, [3.0, 2.0, 1.0], [3.5, 2.5, 1.5], 0.1)
    demo.compare_curves(run, run._replace(valid_losses=[3.5, 2.5, 1.5 * (1 + 1e-6)]))
    with pytest.raises(RuntimeError, match="differ by 1.0e-03, more than 1e-04"):
        demo.compare_curves(run, run._replace(valid_losses=[3.5, 2.5, 1.5 / 1.001]))
    with pytest.raises(RuntimeError, match="different numbers of epochs: 3 and 2"):
        demo.compare_curves(run, run._replace(train_losses=[3.0, 2.0]))


COMPARE = ["compare", "--seq-length", "20", "--seconds", "0.01"]


def test_compare_shares_weights_and_prints_times_and_memory(capsys):
    assert main([*COMPARE, "--batch-size", "3", "--num-layers", "2", "--bidirectional"]) == 0
    printed = capsys.readouterr().out
    assert "input (20, 3, 10) (T, B, I) -> output (20, 3, 40)" in printed and "h (4, 3, 20), c (4, 3, 20)" in printed
    difference = float(re.search(r"relative to the norm (\S+)", printed)[1])
    assert 0 <= difference < 1e-5
    for unit in ("ms", "MiB"):
        rows = re.findall(rf"([\d.]+) {unit} +([\d.]+) {unit} +([\d.]+)x", printed)
        assert len(rows) == 2 and all(float(value) > 0 for row in rows for value in row)


def test_compare_of_what_nn_lstm_cannot_do(capsys):
    assert main([*COMPARE, "--cell", "slstm", "--num-heads", "4"]) == 0
    printed = capsys.readouterr().out
    assert "m (1, 1, 20)" in printed and "nn.LSTM has neither" in printed


def test_peak_memory_counts_what_lives_at_the_same_time(capfd):
    def call(layer, x):
        first = x.new_zeros(1000)
        del first
        both = x.new_zeros(500), x.new_zeros(700)
        return both[0].sum()

    peak = compare.peak_bytes(call, None, torch.zeros(1))
    assert 4 * 1200 <= peak <= 4 * 1200 + 256
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("options, message", [
    (["--hidden-size", "0"], "--hidden-size: expected at least 1, got 0"),
    (["--seconds", "0"], "--seconds: expected a positive number"),
    (["--num-heads", "3"], "num_heads: expected a positive divisor of hidden_size = 20, got 3"),
    (["--backend", "abacus"], "backend: expected 'auto' or one of"),
])
def test_mistakes_in_compare_are_one_line_and_status_2(capsys, options, message):
    assert main([*COMPARE, *options]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.startswith("error: ") and errors.count("\n") == 1


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("how to read the table", "examples", "--seq-length", "steps T"))


def test_bench_passes_its_arguments_on(capsys):
    with pytest.raises(SystemExit) as done:
        main(["bench", "--help"])
    assert done.value.code == 0 and "python -m benchmarks" in capsys.readouterr().out
