"""``python -m xlstm_fused compare``: nn.LSTM and FusedxLSTM on the same weights and input."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils.benchmark import Timer

from .backends import choose
from .demo import UserError
from .module import FusedxLSTM

DESCRIPTION = """\
Run nn.LSTM and FusedxLSTM on the same input, and print what comes out, how far it differs, how long it takes and how
much memory it needs. With --cell lstm both have the same weights: the difference is rounding, about 1e-7 relative to
the output in float32. With --cell slstm the two are different functions of the same size, so only the costs compare.
"""
EPILOG = """\
how to read the table
  inference   one call without gradients
  training    one call, then the gradients of the sum of its output in the input and all parameters
  time        median over repeated calls (torch.utils.benchmark), in ms; both run on --threads threads. A machine that
              does something else at the same time gives other numbers: run it twice.
  memory      the most that tensors take at any time of one call beyond what was there before, in MiB: what torch
              allocates, on the CPU by its profiler, on a GPU by its allocator; scratch space of libraries not counted

examples
  python -m xlstm_fused compare --seq-length 1000 --input-size 10 --hidden-size 20
  python -m xlstm_fused compare --batch-size 64 --hidden-size 256 --threads 4
  python -m xlstm_fused compare --cell slstm --num-heads 4 --hidden-size 64
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m xlstm_fused compare``."""
    for name, default, what in (("seq-length", 1000, "steps T"), ("batch-size", 1, "sequences B"),
                                ("input-size", 10, "features I"), ("hidden-size", 20, "units H of each layer"),
                                ("num-layers", 1, "layers"), ("num-heads", 1, "heads of FusedxLSTM; divides H"),
                                ("threads", 1, "CPU threads of both"), ("seed", 0, "of weights and input")):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default %(default)s)")
    parser.add_argument("--cell", choices=("lstm", "slstm"), default="lstm", help="of FusedxLSTM (default %(default)s)")
    parser.add_argument("--backend", default="auto", help="of FusedxLSTM; see 'info' (default %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), default="float32",
                        help="(default %(default)s)")
    parser.add_argument("--bidirectional", action="store_true", help="both directions")
    parser.add_argument("--seconds", type=float, default=1.0, help="spent on each time (default %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Print the comparison. Raises UserError."""
    for name in ("seq_length", "batch_size", "input_size", "hidden_size", "num_layers", "num_heads", "threads"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    if not args.seconds > 0:
        raise UserError(f"--seconds: expected a positive number, got {args.seconds}")
    dtype, shared = getattr(torch, args.dtype), args.cell == "lstm" and args.num_heads == 1
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    sizes = args.input_size, args.hidden_size, args.num_layers
    options = dict(bidirectional=args.bidirectional, dtype=dtype, device=args.device)
    try:
        theirs = nn.LSTM(*sizes, **options)
        ours = FusedxLSTM(*sizes, **options, cell=args.cell, num_heads=args.num_heads, backend=args.backend)
        backend = choose(args.backend, ours.weight_ih_l0.device.type, dtype, args.cell)
        x = torch.randn(args.seq_length, args.batch_size, args.input_size, dtype=dtype, device=args.device)
    except (RuntimeError, ValueError, AssertionError) as error:
        # torch's own messages (no such device, out of memory) may go on for many lines.
        raise UserError(str(error).splitlines()[0]) from None
    if shared:
        ours.load_state_dict(theirs.state_dict())

    with torch.no_grad():
        (expected, _), (output, state) = theirs(x), ours(x)
    print(f"torch {torch.__version__}, {args.device}, {args.dtype}, threads {torch.get_num_threads()}; "
          f"FusedxLSTM: cell {args.cell}, backend {backend}")
    print(f"input {shape(x)} (T, B, I) -> output {shape(output)} (T, B, K*H), nn.LSTM {shape(expected)}")
    print(f"state {', '.join(f'{name} {shape(value)}' for name, value in zip('hcnm', state))} (L*K, B, H)")
    print(f"parameters: FusedxLSTM {count(ours):,}, nn.LSTM {count(theirs):,}")
    if shared:
        absolute = (output - expected).double().abs().max().item()
        relative = ((output - expected).double().norm() / expected.double().norm()).item()
        print(f"output difference with the same weights: largest {absolute:.1e}, relative to the norm {relative:.1e}")
    else:
        print("output difference: none to speak of, for nn.LSTM has neither this cell nor heads")

    print(f"{'':<12}{'nn.LSTM':>12}{'FusedxLSTM':>12}{'ratio':>8}")
    for what, call in (("inference", inference), ("training", training)):
        times = [1e3 * seconds(call, layer, x, args) for layer in (theirs, ours)]
        print(f"{what:<12}{times[0]:>9.3f} ms{times[1]:>9.3f} ms{times[0] / times[1]:>7.1f}x")
        peaks = [peak_bytes(call, layer, x) / 2**20 for layer in (theirs, ours)]
        print(f"{'':<12}{peaks[0]:>8.2f} MiB{peaks[1]:>8.2f} MiB{peaks[0] / peaks[1]:>7.1f}x")


def shape(value: Tensor) -> str:
    return str(tuple(value.shape))


def count(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def inference(layer: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return layer(x)[0]


def training(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(layer(x)[0].sum(), (x, *layer.parameters()))


def seconds(call: Callable[[nn.Module, Tensor], object], layer: nn.Module, x: Tensor,
            args: argparse.Namespace) -> float:
    """The median time of a call."""
    timer = Timer("call(layer, x)", globals={"call": call, "layer": layer, "x": x}, num_threads=args.threads)
    return timer.blocked_autorange(min_run_time=args.seconds).median


def peak_bytes(call: Callable[[nn.Module, Tensor], object], layer: nn.Module, x: Tensor) -> int:
    """The most bytes of tensors in one call, beyond those before it."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(layer, x)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        with _silent_stderr(), profile(profile_memory=True) as profiler:
            call(layer, x)
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    # One event per allocation (positive) and release (negative).
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    now = most = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        now += change
        most = max(most, now)
    return most


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler announces its start and stop on the file descriptor, past Python's sys.stderr."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
