"""The examples on real data, small: that they learn, save and go on, not only that they end."""

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needs(path):
    return pytest.mark.skipif(not path.exists(), reason=f"the data set {path.name} is not here; see the example")


@pytest.fixture(autouse=True)
def threads():
    """The examples set their own number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_training_killed_in_mid_epoch_and_resumed_is_the_same_training(tmp_path):
    train = example("train")
    options = ["--epochs", "4", "--checkpoint-every", "3"]
    error, naive = train.main(["--output", str(tmp_path / "whole"), *options])
    assert error < naive

    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    command = [sys.executable, str(ROOT / "examples" / "train.py"), "--output", str(checkpoint.parent), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    killed = torch.load(checkpoint, weights_only=True)
    assert killed["epoch"] < 4 and 0 < killed["done"] <= len(killed["order"])

    # Whatever was drawn or trained in this process must not matter.
    torch.manual_seed(99)
    assert train.main(["--output", str(checkpoint.parent), "--resume", *options]) == (error, naive)
    assert (checkpoint.parent / "losses.csv").read_text() == (tmp_path / "whole" / "losses.csv").read_text()
    whole, resumed = (torch.load(path, weights_only=True)
                      for path in (tmp_path / "whole" / "checkpoint.pt", checkpoint))
    assert all(torch.equal(resumed["model"][name], value) for name, value in whole["model"].items())
    assert torch.equal(resumed["rng"], whole["rng"])


def test_training_stopped_at_the_end_of_an_epoch_goes_on_too(tmp_path, monkeypatch):
    train = example("train")
    steps = -(-len(train.data()[0]) // train.BATCH)
    options = ["--epochs", "2", "--checkpoint-every", str(steps)]
    expected = train.main(["--output", str(tmp_path / "whole"), *options])

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    save = train.save
    monkeypatch.setattr(train, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train.main(["--output", str(tmp_path / "stopped"), *options])
    stopped = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)
    assert stopped["epoch"] == 0 and stopped["done"] == len(stopped["order"])
    monkeypatch.setattr(train, "save", save)
    assert train.main(["--output", str(tmp_path / "stopped"), "--resume", *options]) == expected


@pytest.mark.parametrize("options, message", ((["--resume"], "does not exist"), ([], "go on with --resume")))
def test_training_never_overwrites_and_never_resumes_nothing(tmp_path, options, message):
    if not options:
        (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(SystemExit, match=message):
        example("train").main(["--output", str(tmp_path), *options])


@needs(DATA / "sentiment")
def test_sentiment_learns_saves_and_predicts(tmp_path, capsys):
    sentiment = example("sentiment")
    model = ["--model", str(tmp_path / "model.pt")]
    reached = sentiment.main(["--data", str(DATA / "sentiment"), *model, "--epochs", "6"])
    # 600 sentences, half of them positive.
    assert reached > 0.75
    assert sentiment.main(["--predict", "Great food, great service, I love it!", *model]) > 0.6
    assert sentiment.main(["--predict", "Terrible. It was a waste of money and does not work.", *model]) < 0.4
    assert "\npositive (probability of positive " in capsys.readouterr().out


def test_sentiment_of_a_sentence_does_not_depend_on_its_batch():
    sentiment = example("sentiment")
    model = sentiment.Classifier(vocabulary_size=9, width=8, cell="lstm", dropout=0.5).eval()
    short, long = [torch.randint(1, 10, (length,)) for length in (3, 11)]
    together = model(torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True), torch.tensor([3, 11]))
    alone = model(short[None], torch.tensor([3]))
    torch.testing.assert_close(together[:1], alone)


def test_sentiment_reads_lines_not_what_python_takes_for_lines(tmp_path):
    sentiment = example("sentiment")
    (tmp_path / "one.txt").write_text("A line\x85that goes on.\t1\nNo.\t0\n", encoding="utf-8")
    assert sentiment.read(tmp_path) == [("A line\x85that goes on.", 1), ("No.", 0)]
    (tmp_path / "two.txt").write_text("fine\t1\nno label\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="two.txt, line 2: expected sentence<TAB>0 or 1"):
        sentiment.read(tmp_path)
    with pytest.raises(SystemExit, match="no .*txt file"):
        sentiment.read(tmp_path / "nowhere")
    with pytest.raises(SystemExit, match="train first"):
        sentiment.main(["--predict", "x", "--model", str(tmp_path / "none.pt")])


@needs(DATA / "ett" / "ETTh1.csv")
def test_forecast_beats_the_naive_forecast_and_splits_as_usual():
    forecast = example("forecast")
    path = DATA / "ett" / "ETTh1.csv"
    errors = forecast.main(["--data", str(path), "--horizons", "96", "--epochs", "2", "--train-stride", "4",
                            "--cells", "slstm", "--learning-rate", "0.004", "--threads", "1"])[96]
    assert errors["FusedxLSTM slstm"] < 0.42 < errors["seasonal naive"]
    # What published linear models reach with two weeks of context on this split: 0.37 to 0.38.
    assert 0.36 < errors["linear"] < 0.38

    values = forecast.read(path)
    assert torch.allclose(values[:8640].mean(0), torch.zeros(7), atol=1e-4)
    assert torch.allclose(values[:8640].std(0), torch.ones(7), atol=1e-4)
    for part, (first, last) in enumerate(((336, 8640), (8640, 11520), (11520, 14400))):
        seen, target = forecast.windows(values, part, 336, 96)
        assert len(seen) == last - first - 96 + 1
        assert torch.equal(target[0], values[first:first + 96].t()) and torch.equal(target[-1, :, -1], values[last - 1])
        assert torch.equal(seen[0, :, -1], values[first - 1])
    seen = torch.arange(48.0).view(1, 1, 48)
    assert forecast.seasonal_naive(30)(seen)[0, 0].tolist() == [*range(24, 48), *range(24, 30)]
