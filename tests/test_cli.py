import math

import pytest

from xlstm_fused import demo
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
    arguments = ["--data", str(csv), "--column", "wave", "--cell", cell, "--backend", "reference", "--output", str(tmp_path)]
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
