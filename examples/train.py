"""A minimal training loop that can be killed at any moment and goes on exactly where it was.

    python examples/train.py --output run            # train; Ctrl-C, kill -9, a lost machine ...
    python examples/train.py --output run --resume   # ... and the learning curve is the same, bit for bit

The task: weekly CO2 at Mauna Loa (from statsmodels), what the concentration will be four weeks ahead, at every week of
a window, from the changes so far. Mean squared error, Adam, clipped gradients, layer normalisation and dropout.

What a checkpoint must hold so that a resumed run is the same run: the model, the optimizer, the state of every random
number generator that training draws from (dropout: torch's own; the order of the data: ``order``), and how far in
which epoch it is. Everything is tensors, numbers and strings, so ``torch.load(weights_only=True)`` reads it.
"""

import argparse
import csv
import os
from pathlib import Path

import torch
from statsmodels.datasets import co2
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from xlstm_fused import FusedxLSTM

WINDOW, AHEAD, YEAR, BATCH = 104, 4, 52, 32


class Model(nn.Module):
    """(B, T, 2) -> (B, T), the predicted change from each week to four weeks later."""

    def __init__(self, hidden_size=32):
        super().__init__()
        self.layers = FusedxLSTM(2, hidden_size, num_layers=2, batch_first=True, dropout=0.1, layer_norm=True,
                                 residual=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x):
        return self.head(self.layers(x)[0]).squeeze(-1)


def data():
    """``(training windows, test windows, mean squared error of the naive forecast on the latter, ppm^2 per unit)``.

    The naive forecast is the change over the same four weeks a year ago. The last fifth of the series is for testing.
    """
    series = torch.tensor(co2.load_pandas().data["co2"].interpolate().to_numpy(), dtype=torch.float32)
    t = torch.arange(YEAR + 1, len(series) - AHEAD)
    # What is known at week t: the last change, and what followed a year ago.
    inputs = torch.stack((series[t] - series[t - 1], series[t - YEAR + AHEAD] - series[t - YEAR]), 1)
    target = series[t + AHEAD] - series[t]
    scale = target[:int(0.8 * len(t))].std()
    parts = []
    for start, stop, stride in ((0, int(0.8 * len(t)) - AHEAD, 4), (int(0.8 * len(t)), len(t), WINDOW // 2)):
        x, y = (part[start:stop].unfold(0, WINDOW, stride) for part in (inputs / scale, target / scale))
        parts.append(TensorDataset(x.transpose(1, 2).contiguous(), y.contiguous()))
    x, y = parts[1].tensors
    return *parts, nn.functional.mse_loss(x[..., 1], y).item(), (scale ** 2).item()


def save(path, model, optimizer, progress):
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), **progress}
    # A kill in the middle of writing must leave the checkpoint before: write beside it, then rename, which is atomic.
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def resume(path, model, optimizer):
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state.pop("model"))
    optimizer.load_state_dict(state.pop("optimizer"))
    torch.set_rng_state(state.pop("rng"))
    return state


def train(args):
    training, test, naive, unit = data()
    checkpoint = args.output / "checkpoint.pt"
    if checkpoint.exists() and not args.resume:
        raise SystemExit(f"error: {checkpoint} exists: go on with --resume, or choose another --output")
    if args.resume and not checkpoint.exists():
        raise SystemExit(f"error: --resume: {checkpoint} does not exist")
    args.output.mkdir(parents=True, exist_ok=True)
    # The layers are small: more threads would mostly wait for each other.
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    # The order of this epoch's windows, how many of them are done, and the loss of every step so far.
    progress = {"order": torch.randperm(len(training)), "done": 0, "epoch": 0, "losses": []}
    if args.resume:
        progress = resume(checkpoint, model, optimizer)

    model.train()
    bar = tqdm(initial=len(progress["losses"]), total=args.epochs * -(-len(training) // BATCH), unit="step")
    while progress["epoch"] < args.epochs:
        # A generator of its own: DataLoader draws a seed for its workers, and would draw it from torch's own.
        loader = DataLoader(training, BATCH, sampler=progress["order"][progress["done"]:].tolist(),
                            generator=torch.Generator())
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress["losses"].append(loss.item())
            progress["done"] += len(x)
            bar.update()
            if len(progress["losses"]) % args.checkpoint_every == 0:
                save(checkpoint, model, optimizer, progress)
        progress |= {"order": torch.randperm(len(training)), "done": 0, "epoch": progress["epoch"] + 1}
        bar.set_postfix(loss=f"{progress['losses'][-1]:.4f}")
    bar.close()
    save(checkpoint, model, optimizer, progress)
    with open(args.output / "losses.csv", "w", newline="") as file:
        csv.writer(file).writerows([("step", "loss"), *enumerate(progress["losses"], 1)])

    model.eval()
    x, y = test.tensors
    with torch.no_grad():
        error = nn.functional.mse_loss(model(x), y).item()
    print(f"test, four weeks ahead: RMSE {(unit * error) ** 0.5:.3f} ppm; "
          f"naive, as a year ago, {(unit * naive) ** 0.5:.3f} ppm")
    return error, naive


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for checkpoint.pt and losses.csv")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    parser.add_argument("--epochs", type=int, default=30, help="(default %(default)s)")
    parser.add_argument("--checkpoint-every", type=int, default=5, metavar="N", help="steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for name in ("epochs", "checkpoint_every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    return train(args)


if __name__ == "__main__":
    main()
