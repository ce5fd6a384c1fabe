"""The command line: ``python -m xlstm_fused``."""

import argparse
import sys

import torch

import xlstm_fused

from . import compare, demo


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 for a mistake of the user's (argparse exits with 2 as well)."""
    parser = argparse.ArgumentParser(prog="python -m xlstm_fused", description="Fused recurrent layers for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print versions, and which backends this machine can run and why not the rest")
    demo.add_arguments(commands.add_parser("demo", help="train a forecaster on a real series, nn.LSTM beside it"))
    compare.add_arguments(commands.add_parser(
        "compare", help="nn.LSTM beside FusedxLSTM: output, time and memory", description=compare.DESCRIPTION,
        epilog=compare.EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter))
    commands.add_parser("bench", add_help=False, help="python -m benchmarks, from within the source tree")
    args, rest = parser.parse_known_args(argv)
    if args.command == "bench":
        return bench(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.command == "info":
        print(f"xlstm_fused {xlstm_fused.__version__}, torch {torch.__version__}")
        print(xlstm_fused.backends())
        return 0
    try:
        {"demo": demo, "compare": compare}[args.command].run(args)
    except demo.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def bench(arguments: list[str]) -> int:
    """The benchmarks, which come with the source and are not installed."""
    try:
        from benchmarks.__main__ import main as benchmarks
    except ImportError as error:
        print(f"error: the benchmarks do not import ({error}): run this in a clone of the source, with "
              "pip install 'xlstm-fused[bench]'", file=sys.stderr)
        return 2
    status: int = benchmarks(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
