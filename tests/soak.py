"""Calls by the thousand, of random shapes and options: does memory stay flat, and do threads come and go?

    python tests/soak.py [calls]

prints the resident memory and the number of threads now and then, and fails where either grew.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
from pathlib import Path

import torch

from xlstm_fused import FusedxLSTM
from xlstm_fused.cells import CELLS

# Growth allowed from the second quarter of the calls to the last, in MiB: less than 1 KiB per call at 20,000.
ALLOWED = 8


def status(field: str) -> int:
    """A number of /proc/self/status: VmRSS in KiB, Threads."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def call(rng: random.Random) -> None:
    """One layer made, trained for a step and dropped; some calls are wrong and raise."""
    N = rng.choice((1, 1, 2))
    layer = FusedxLSTM(rng.randint(1, 40), N * rng.randint(1, 40), rng.randint(1, 2), bidirectional=rng.random() < 0.3,
                       cell=rng.choice(tuple(CELLS)), num_heads=N, checkpoint_every=rng.choice((None, None, 4)))
    T, B = rng.randint(1, 30), rng.randint(1, 12)
    x = torch.randn(T, B, layer.input_size, requires_grad=True)
    lengths = [rng.randint(0, T) for _ in range(B)] if rng.random() < 0.3 else None
    if rng.random() < 0.1:
        try:
            layer(x, lengths=[T + 1] * B)
        except ValueError:
            return
        raise AssertionError("a length past the end did not raise")
    with torch.set_grad_enabled(rng.random() < 0.7):
        output, *_ = layer(x, lengths=lengths, trace=rng.random() < 0.1)
    if output.requires_grad:
        output.square().mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calls", nargs="?", type=int, default=20_000)
    calls, rng, memory, threads = parser.parse_args().calls, random.Random(1), [], []
    for n in range(calls):
        if n % 50 == 0:
            torch.set_num_threads(1 + n // 50 % 2)
        call(rng)
        if (n + 1) % max(1, calls // 40) == 0:
            gc.collect()
            memory.append(status("VmRSS") / 1024)
            threads.append(status("Threads"))
            print(f"{n + 1:6} calls  {memory[-1]:7.1f} MiB  {threads[-1]} threads", flush=True)
    quarter = len(memory) // 4
    grown = statistics.median(memory[-quarter:]) - statistics.median(memory[quarter:2 * quarter])
    # The first quarter fills the allocators' and the libraries' own caches.
    steady = range(quarter, len(memory))
    slope = statistics.linear_regression(steady, memory[quarter:]).slope * 1024 / (calls / len(memory))
    print(f"{calls} calls: {grown:+.1f} MiB from the second quarter to the last, slope {slope:+.3f} KiB per call, "
          f"{threads[quarter]} threads then, {threads[-1]} now")
    if grown > ALLOWED or max(threads[quarter:]) > threads[quarter]:
        raise SystemExit("memory or threads leak")


if __name__ == "__main__":
    main()
