"""Training on two processes, by the example that shows it: its gradients are those of one process."""

import subprocess
import sys
from pathlib import Path

import torch
from tolerances import assert_close

EXAMPLE = Path(__file__).parents[1] / "examples" / "distributed.py"


def train(processes, strategy, file):
    """``{parameter: (value, gradient)}`` after one step."""
    # What torchrun is short for.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", EXAMPLE,
               f"--strategy={strategy}", f"--save={file}", "--cell=slstm", "--steps=1", "--length=12", "--hidden=8",
               "--batch=8"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "step 1: mean squared error" in result.stdout
    return torch.load(file, weights_only=True)


def test_two_processes_train_as_one(tmp_path):
    expected = train(1, "ddp", tmp_path / "one.pt")
    for strategy in ("ddp", "fsdp"):
        got = train(2, strategy, tmp_path / f"{strategy}.pt")
        assert list(got) == list(expected)
        for name, (_, gradient) in expected.items():
            assert gradient.norm() > 0
            assert_close(got[name][1], gradient, f"{strategy}: gradient of {name}")
