"""The demo: a forecaster of weekly CO2 at Mauna Loa, the same model on ``nn.LSTM`` beside it.

Windows of ``context`` steps predict the next ``horizon`` steps at once. The model sees seasonal differences (each value
less that of one season before) relative to the last one, and predicts what the seasonal naive forecast with drift
misses; both in units of the standard deviation of what is seen in the training part. The split is chronological, and
no window reaches from one part into the next part's targets.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from . import viz
from .backends import choose
from .module import FusedxLSTM

CURVES_AGREE = 1e-4
"""The largest relative difference, in any epoch, of the losses of FusedxLSTM and nn.LSTM. They round differently in
float32; a wrong gradient shows far above this."""


class UserError(Exception):
    """Something to tell the user in one line."""


class Series(NamedTuple):
    values: Tensor
    """(length,) float64."""
    name: str
    unit: str
    period: int


class Windows(NamedTuple):
    """``context`` and ``seasonal`` (count, context), ``target`` (count, horizon), ``naive`` and ``drift`` like
    ``target``, all in the unit of the series; ``seasonal`` is relative to its last value."""

    context: Tensor
    seasonal: Tensor
    target: Tensor
    naive: Tensor
    drift: Tensor


class Forecaster(nn.Module):
    """A recurrent layer, and a linear head on its last output: (B, context) -> (B, horizon)."""

    def __init__(self, layer: nn.RNNBase, horizon: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size, horizon)

    def forward(self, x: Tensor) -> Tensor:
        forecast: Tensor = self.head(self.layer(x.unsqueeze(-1))[0][:, -1])
        return forecast


class Run(NamedTuple):
    model: Forecaster
    train_losses: list[float]
    valid_losses: list[float]
    seconds_per_epoch: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m xlstm_fused demo``."""
    parser.add_argument("--data", type=Path, metavar="CSV", help="forecast this file instead of the CO2 series")
    parser.add_argument("--column", metavar="NAME", help="column of the file; default: its last")
    parser.add_argument("--period", type=int, default=52, metavar="N", help="steps in a season (default %(default)s)")
    parser.add_argument("--cell", choices=("lstm", "slstm"), default="lstm")
    parser.add_argument("--backend", choices=("auto", "cpu", "reference"), default="auto")
    parser.add_argument("--epochs", type=int, default=30, help="at most this many (default %(default)s)")
    parser.add_argument("--hidden-size", type=int, default=32, metavar="H", help="(default %(default)s)")
    parser.add_argument("--layers", type=int, default=1, metavar="L", help="(default %(default)s)")
    parser.add_argument("--context", type=int, default=104, metavar="T", help="steps seen (default %(default)s)")
    parser.add_argument("--horizon", type=int, default=26, metavar="T", help="steps predicted (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("demo-out"), metavar="DIR", help="for the picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1,
                        help="more are slower for a model as small as the default one (default %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Train, compare, print and draw. Raises UserError, and RuntimeError if the two learning curves disagree."""
    for name in ("period", "epochs", "hidden_size", "layers", "context", "horizon", "threads"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    series = read_csv(args.data, args.column, args.period) if args.data else co2()
    require("tqdm", "examples")
    require("matplotlib", "viz")
    try:
        backend = choose(args.backend, "cpu", torch.float32, args.cell)
        args.output.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:
        raise UserError(str(error)) from None
    torch.set_num_threads(args.threads)
    parts = split(series, args.context, args.horizon)
    scale = float(parts[0].seasonal.std()) or 1.0
    print(f"{series.name}: {len(series.values)} values; windows for training, validation, test: "
          f"{', '.join(str(len(part.target)) for part in parts)}")
    print(f"cell {args.cell}, backend {backend}, threads {torch.get_num_threads()}")

    sizes = dict(num_layers=args.layers, batch_first=True)
    ours = train(lambda: FusedxLSTM(1, args.hidden_size, **sizes, cell=args.cell, backend=args.backend), parts, scale,
                 args, f"FusedxLSTM {args.cell}")
    twin = None
    if args.cell == "lstm":
        twin = train(lambda: nn.LSTM(1, args.hidden_size, **sizes), parts, scale, args, "nn.LSTM")
    test = parts[2]
    print_errors(series, test, {"FusedxLSTM": predict(ours.model, test, scale)}
                 | ({"nn.LSTM": predict(twin.model, test, scale)} if twin else {}))
    path = args.output / "demo.png"
    draw(series, test, ours.model, scale, path)
    print(f"picture: {path}")
    print(f"time per epoch: FusedxLSTM {ours.seconds_per_epoch:.2f} s"
          + (f", nn.LSTM {twin.seconds_per_epoch:.2f} s" if twin else ""))
    if twin:
        compare_curves(ours, twin)
    else:
        print("torch.nn has no sLSTM: nothing to compare the learning curve with")


def require(module: str, extra: str) -> None:
    """Import an optional package, or say which extra has it."""
    try:
        __import__(module)
    except ImportError:
        raise UserError(f"the demo needs {module}: pip install xlstm-fused[{extra}]") from None


def co2() -> Series:
    """Weekly CO2 at Mauna Loa, 1958-2001, from statsmodels; gaps are filled by straight lines."""
    require("statsmodels", "examples")
    from statsmodels.datasets import co2 as dataset

    values = dataset.load_pandas().data["co2"].interpolate()
    return Series(torch.tensor(values.tolist(), dtype=torch.float64), "CO2 at Mauna Loa, weekly", "ppm", 52)


def read_csv(path: Path, column: str | None, period: int) -> Series:
    """A column of a CSV file with a header line; gaps are filled by straight lines."""
    require("pandas", "examples")
    import pandas

    try:
        table = pandas.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--data: {path}: {getattr(error, 'strerror', None) or str(error).splitlines()[0]}") from None
    column = column or table.columns[-1]
    if column not in table:
        raise UserError(f"--column: {path} has no column {column!r}; it has: {', '.join(map(str, table.columns))}")
    try:
        values = pandas.to_numeric(table[column]).astype(float).interpolate().dropna()
    except (ValueError, TypeError):
        raise UserError(f"--column: {column!r} of {path} has values that are not numbers") from None
    values = torch.tensor(values.tolist(), dtype=torch.float64)
    if not values.isfinite().all():
        raise UserError(f"--column: {column!r} of {path} has values that are not finite")
    return Series(values, str(column), "", period)


def split(series: Series, context: int, horizon: int) -> list[Windows]:
    """Training, validation and test windows: by their first target, 70, 15 and 15 % of the series."""
    values, period = series.values, series.period
    first = context + period
    bounds = [first, int(0.7 * len(values)), int(0.85 * len(values)), len(values)]
    parts = []
    for start, stop in zip(bounds, bounds[1:]):
        # t is the first target's index; all targets lie before stop.
        t = torch.arange(start, max(start, stop - horizon + 1))
        if len(t) < 1:
            need = int((first + horizon) / 0.7) + 1
            raise UserError(f"the series is too short: {len(values)} values, of which --context {context}, --period "
                            f"{period} and --horizon {horizon} need about {max(need, int(horizon / 0.15) + 2)}")
        step = torch.arange(horizon)
        # Beyond one season the naive forecast repeats the last season known.
        ago = t[:, None] + step % period - period
        naive, before = values[ago], t[:, None] + torch.arange(-context, 0)
        difference = values[before] - values[before - period]
        last = difference[:, -1:]
        parts.append(Windows(values[before], difference - last, values[t[:, None] + step], naive,
                             naive + (1 + step // period) * last))
    return parts


def relative(windows: Windows, scale: float) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the model, in units of ``scale``."""
    return (windows.seasonal / scale).float(), ((windows.target - windows.drift) / scale).float()


def predict(model: nn.Module, windows: Windows, scale: float) -> Tensor:
    """Forecasts (count, horizon) in the unit of the series, float64."""
    model.eval()
    with torch.no_grad():
        forecast: Tensor = model(relative(windows, scale)[0]).double() * scale + windows.drift
    return forecast


def train(make_layer: Callable[[], nn.RNNBase], parts: list[Windows], scale: float, args: argparse.Namespace,
          title: str) -> Run:
    """Train a forecaster with early stopping; the seed alone decides initial weights and batches."""
    from tqdm import trange

    torch.manual_seed(args.seed)
    model = Forecaster(make_layer(), args.horizon)
    loader = DataLoader(TensorDataset(*relative(parts[0], scale)), batch_size=64, shuffle=True,
                        generator=torch.Generator().manual_seed(args.seed))
    x_valid, y_valid = relative(parts[1], scale)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs, eta_min=2e-4)
    losses, valid_losses, seconds, best, patience = [], [], [], None, 8
    bar = trange(args.epochs, desc=title, unit="epoch")
    for _ in bar:
        begin = time.perf_counter()
        losses.append(train_epoch(model, loader, optimizer))
        seconds.append(time.perf_counter() - begin)
        schedule.step()
        model.eval()
        with torch.no_grad():
            valid_losses.append(nn.functional.mse_loss(model(x_valid), y_valid).item())
        bar.set_postfix(train=f"{losses[-1]:.4f}", valid=f"{valid_losses[-1]:.4f}")
        if valid_losses[-1] == min(valid_losses):
            best = copy.deepcopy(model.state_dict())
        if len(valid_losses) - valid_losses.index(min(valid_losses)) > patience:
            bar.close()
            break
    if best is None:
        raise RuntimeError(f"{title}: the validation loss is not a number from the first epoch on")
    model.load_state_dict(best)
    return Run(model, losses, valid_losses, sorted(seconds)[len(seconds) // 2])


def train_epoch(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]], optimizer: torch.optim.Optimizer) -> float:
    """One pass over the training windows; returns the mean squared error over them."""
    model.train()
    total, count = 0.0, 0
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item() * len(x)
        count += len(x)
    return total / count


def print_errors(series: Series, test: Windows, forecasts: dict[str, Tensor]) -> None:
    """MAE and RMSE over all test windows and steps ahead, in the unit of the series."""
    rows = forecasts | {"seasonal naive": test.naive, "seasonal naive + drift": test.drift}
    unit = f" [{series.unit}]" if series.unit else ""
    print(f"{'test error' + unit:<24}{'MAE':>9}{'RMSE':>9}")
    for name, forecast in rows.items():
        error = forecast - test.target
        print(f"{name:<24}{error.abs().mean():>9.3f}{error.square().mean().sqrt():>9.3f}")


def compare_curves(ours: Run, twin: Run) -> None:
    """Print the largest relative difference of the two learning curves, and raise if they disagree anywhere."""
    if len(ours.train_losses) != len(twin.train_losses):
        raise RuntimeError(f"the two trainings stopped after different numbers of epochs: {len(ours.train_losses)} and "
                           f"{len(twin.train_losses)}")
    pairs = zip(ours.train_losses + ours.valid_losses, twin.train_losses + twin.valid_losses)
    worst = max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)
    print(f"learning curves: largest relative difference {worst:.1e} over {len(ours.train_losses)} epochs")
    if not worst <= CURVES_AGREE:
        raise RuntimeError(f"the learning curves of FusedxLSTM and nn.LSTM differ by {worst:.1e}, more than "
                           f"{CURVES_AGREE:.0e}, though weights and batches were the same")


def draw(series: Series, test: Windows, model: Forecaster, scale: float, path: Path) -> None:
    """Forecast against truth, gates and states of the last test window."""
    last = Windows(*(part[-1:] for part in test))
    with torch.no_grad():
        trace = model.layer(relative(last, scale)[0].unsqueeze(-1), trace=True)[2]
    figure = viz._new_figure((14, 11))
    top, middle, bottom = figure.subfigures(3, 1, squeeze=False)[:, 0]
    panel = top.subplots()
    context, horizon = last.context.shape[1], last.target.shape[1]
    past, ahead = range(1 - context, 1), range(1, horizon + 1)
    panel.plot(past, last.context[0].tolist(), color="black", label="seen")
    panel.plot(ahead, last.target[0].tolist(), color="black", linestyle=":", label="truth")
    panel.plot(ahead, predict(model, last, scale)[0].tolist(), color="tab:red", label="FusedxLSTM")
    panel.plot(ahead, last.drift[0].tolist(), color="tab:blue", linestyle="--", label="seasonal naive + drift")
    panel.set(title=f"{series.name}: last test window", xlabel="steps from the last value seen",
              ylabel=series.unit or series.name)
    panel.legend(loc="upper left")
    middle.suptitle("activated gates of the last layer")
    viz.gates(trace, batch_first=True, figure=middle)
    bottom.suptitle("states of the last layer")
    viz.states(trace, batch_first=True, figure=bottom)
    figure.savefig(path, dpi=100)
