"""Make the pictures of this folder: ``python docs/images/make.py``, from the repository's folder; about a minute."""

import argparse
from pathlib import Path

import torch
from torch import nn

from xlstm_fused import FusedxLSTM, demo, viz
from xlstm_fused.__main__ import main

HERE = Path(__file__).resolve().parent


def trained(cell):
    """The demo's forecaster, trained on weekly CO2, and the trace of its layer on the last test window."""
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    args = parser.parse_args(["--cell", cell])
    parts = demo.split(demo.co2(), args.context, args.horizon)
    scale = float(parts[0].seasonal.std())
    run = demo.train(lambda: FusedxLSTM(1, args.hidden_size, batch_first=True, cell=cell), parts, scale, args, cell)
    x = demo.relative(parts[2], scale)[0][-1:].unsqueeze(-1)
    return run.model.layer, x


def gates_and_states():
    layer, x = trained("slstm")
    trace = layer(x, trace=True)[2]
    for name, draw in (("gates", viz.gates), ("states", viz.states)):
        draw(trace, batch_first=True).savefig(HERE / f"{name}.png", dpi=90)


def windows(width=104, count=32):
    """Weekly CO2, the change against a year ago, standardised: (T, B, 1)."""
    values = demo.co2().values
    change = values[52:] - values[:-52]
    change = (change - change.mean()) / change.std()
    return change.unfold(0, width, (len(change) - width) // (count - 1))[:count].t().unsqueeze(-1).float()


def over_time():
    """One layer as it starts: cells and forget biases."""
    x, H = windows(), 64
    torch.manual_seed(0)
    models = {"nn.LSTM": nn.LSTM(1, H), "lstm, the same weights": FusedxLSTM(1, H)}
    models["lstm, the same weights"].load_state_dict(models["nn.LSTM"].state_dict())
    for cell, bias in (("lstm", 1.0), ("lstm", 3.0), ("slstm", None), ("slstm", 3.0)):
        torch.manual_seed(0)
        name = cell if bias is None else f"{cell}, forget_bias={bias:g}"
        models[name] = FusedxLSTM(1, H, cell=cell, forget_bias=bias)
    viz.gradient_flow(models, x).savefig(HERE / "gradient_time.png", dpi=90)


def over_depth():
    """The first of eight layers, with and without residual connections."""
    x, H, models = windows(), 64, {}
    for cell in ("lstm", "slstm"):
        for residual in (False, True):
            torch.manual_seed(0)
            models[f"{cell}{', residual' if residual else ''}"] = FusedxLSTM(
                1, H, 8, cell=cell, residual=residual, forget_bias=3.0)
    viz.gradient_flow(models, x, layer=0).savefig(HERE / "gradient_depth.png", dpi=90)


if __name__ == "__main__":
    torch.set_num_threads(1)
    over_time()
    over_depth()
    gates_and_states()
    main(["demo", "--output", str(HERE)])
