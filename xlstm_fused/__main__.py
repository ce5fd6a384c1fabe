"""The command line: ``python -m xlstm_fused``."""

import argparse

import torch

import xlstm_fused


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m xlstm_fused", description="Fused recurrent layers for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print versions, and which backends this machine can run and why not the rest")
    parser.parse_args()
    print(f"xlstm_fused {xlstm_fused.__version__}, torch {torch.__version__}")
    print(xlstm_fused.backends())


if __name__ == "__main__":
    main()
