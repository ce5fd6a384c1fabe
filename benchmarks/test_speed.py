"""``pytest benchmarks``: the quick cases by pytest-benchmark, whose options compare, save and draw.

A check of one change on one machine; results to publish come from ``python -m benchmarks``, which runs rivals in turns.
"""

import pytest
import torch

from .cases import MODES, QUICK
from .contestants import QUICK_LOOP_STEPS, roster, truth
from .problem import LIMITS, Problem, worst_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHOSEN = [(case, each) for case in QUICK for each in roster(DEVICE)
          if (each.is_ours or each.name == "nn.LSTM") and each.reason(case, "fp32", QUICK_LOOP_STEPS) is None]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case, contestant", CHOSEN, ids=[f"{case.name}-{each.name}" for case, each in CHOSEN])
def test_speed(benchmark, case, contestant, mode):
    benchmark.group = f"{case.name}, {mode}"
    problem = Problem(case, DEVICE)
    ready = contestant.build(problem, "fp32")
    error, of = worst_error(ready.results(mode), truth(problem))
    assert error <= LIMITS["tf32" if DEVICE == "cuda" else "fp32"], of
    run = ready.runner(mode)

    def synchronized():
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(synchronized)
