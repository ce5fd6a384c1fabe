"""Hourly electricity-transformer data: the next 4 or 14 days of seven series from the last two weeks.

    python examples/forecast.py --data ETTh1.csv

The protocol is the usual one for ETTh1 (Zhou et al., "Informer", AAAI 2021): 12 months to train, 4 to choose, 4 to
test, a month being 30 days; each column standardised by its training part; the mean squared error over all test
windows, all steps ahead and all columns. Beside the recurrent model stand what it has to beat: the seasonal naive
forecast, which repeats the last day, and a linear model from the same window, solved in closed form.

The model sees a window as a sequence of days, 24 values a step, less the mean of the window, and forecasts every
column by itself with the same weights. The linear model is given the same.
"""

import argparse
import copy
import time
from pathlib import Path

import pandas
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from tqdm import trange

from xlstm_fused import FusedxLSTM

DAY, MONTH = 24, 30 * 24
ENDS = 12 * MONTH, 16 * MONTH, 20 * MONTH
"""Where the training, validation and test parts end, in hours."""


def read(path):
    """(hours, columns), standardised by the training part."""
    try:
        table = pandas.read_csv(path).drop(columns="date").to_numpy("float32", copy=True)
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(f"error: --data: {path}: {error}") from None
    if len(table) < ENDS[-1]:
        raise SystemExit(f"error: --data: expected at least {ENDS[-1]} hours, got {len(table)}")
    values = torch.from_numpy(table)
    return (values - values[:ENDS[0]].mean(0)) / values[:ENDS[0]].std(0)


def windows(values, part, context, horizon):
    """``(seen (count, columns, context), target (count, columns, horizon))``; targets lie within the part, and what is
    seen may reach back into the part before."""
    start = ENDS[part - 1] - context if part else 0
    both = values[start:ENDS[part]].unfold(0, context + horizon, 1)
    return both[..., :context], both[..., context:]


def level(seen):
    """What is subtracted from a window, and added to its forecast."""
    return seen.mean(-1, keepdim=True)


def mse(forecast, loader):
    """Mean squared error of ``forecast(seen)``; every target value counts the same."""
    total = count = 0
    with torch.no_grad():
        for seen, target in loader:
            total += (forecast(seen) - target).double().square().sum().item()
            count += target.numel()
    return total / count


def seasonal_naive(horizon):
    return lambda seen: seen[..., -DAY:].repeat(1, 1, -(-horizon // DAY))[..., :horizon]


def linear_model(train_loader, valid_loader, context, horizon):
    """Ridge regression from the window to all steps ahead, the penalty chosen on the validation part."""
    gram, cross = torch.zeros(context, context, dtype=torch.float64), torch.zeros(context, horizon, dtype=torch.float64)
    for seen, target in train_loader:
        x, y = ((part - level(seen)).flatten(0, 1).double() for part in (seen, target))
        gram += x.t() @ x
        cross += x.t() @ y

    def fit(penalty):
        weight = torch.linalg.solve(gram + penalty * torch.eye(context), cross).float()
        return lambda seen: (seen - level(seen)) @ weight + level(seen)

    return min((fit(penalty) for penalty in (1e1, 1e2, 1e3, 1e4)), key=lambda model: mse(model, valid_loader))


class Forecaster(nn.Module):
    """(B, columns, context) -> (B, columns, horizon), each column by itself."""

    def __init__(self, horizon, hidden_size, cell, num_layers, dropout):
        super().__init__()
        self.layers = FusedxLSTM(DAY, hidden_size, num_layers, batch_first=True, cell=cell,
                                 dropout=dropout if num_layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, horizon)

    def forward(self, seen):
        days = (seen - level(seen)).unflatten(-1, (-1, DAY)).flatten(0, 1)
        _, (h, *_) = self.layers(days)
        return self.head(self.dropout(h[-1])).unflatten(0, seen.shape[:2]) + level(seen)


def train(parts, args, cell, horizon):
    """The model of the epoch with the smallest validation error."""
    torch.manual_seed(args.seed)
    model = Forecaster(horizon, args.hidden_size, cell, args.layers, args.dropout)
    loader, valid_loader = DataLoader(parts[0], 32, shuffle=True), DataLoader(parts[1], 256)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    best, state = float("inf"), None
    bar = trange(args.epochs, unit="epoch", desc=f"{cell}, {horizon} h")
    for _ in bar:
        model.train()
        for seen, target in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(seen), target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        schedule.step()
        model.eval()
        reached = mse(model, valid_loader)
        bar.set_postfix(valid=f"{reached:.4f}")
        if reached < best:
            best, state = reached, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return model


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="CSV", help="ETTh1.csv, or a file of its form")
    parser.add_argument("--horizons", type=int, nargs="+", default=[96, 336], metavar="H", help="hours ahead")
    parser.add_argument("--context", type=int, default=336, metavar="H", help="hours seen, whole days (%(default)s)")
    parser.add_argument("--cells", choices=("lstm", "slstm"), nargs="+", default=["lstm", "slstm"])
    parser.add_argument("--hidden-size", type=int, default=64, help="(default %(default)s)")
    parser.add_argument("--layers", type=int, default=1, help="(default %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.2, help="(default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(default %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="(default %(default)s)")
    parser.add_argument("--train-stride", type=int, default=1, metavar="H",
                        help="hours between training windows of the recurrent model (default %(default)s: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="(default %(default)s)")
    args = parser.parse_args(argv)
    for name in ("context", "epochs", "layers", "hidden_size", "train_stride", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    if args.context % DAY:
        parser.error(f"--context: expected whole days, a multiple of {DAY}, got {args.context}")
    if not all(1 <= horizon <= 4 * MONTH for horizon in args.horizons):
        parser.error(f"--horizons: expected 1 to {4 * MONTH} hours, got {args.horizons}")
    torch.set_num_threads(args.threads)

    values, results = read(args.data), {}
    for horizon in args.horizons:
        parts = [TensorDataset(*windows(values, part, args.context, horizon)) for part in range(3)]
        loaders = [DataLoader(part, 256) for part in parts]
        forecasts = {"seasonal naive": seasonal_naive(horizon),
                     "linear": linear_model(*loaders[:2], args.context, horizon)}
        parts[0] = Subset(parts[0], range(0, len(parts[0]), args.train_stride))
        begin = time.perf_counter()
        forecasts |= {f"FusedxLSTM {cell}": train(parts, args, cell, horizon) for cell in args.cells}
        seconds = time.perf_counter() - begin
        results[horizon] = {name: mse(forecast, loaders[2]) for name, forecast in forecasts.items()}
        print(f"{horizon} hours ahead, {len(parts[0])} training windows, trained in {seconds:.0f} s: test MSE")
        for name, error in results[horizon].items():
            print(f"  {name:<18}{error:.3f}")
    return results


if __name__ == "__main__":
    main()
