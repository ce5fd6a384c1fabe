"""Threads and processes: whoever calls, and however many at once, gets the bits that one caller alone gets."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from xlstm_fused import FusedxLSTM, recurrence
from xlstm_fused.backends import backends

pytestmark = pytest.mark.skipif(not backends()["cpu"].ready, reason="the cpu backend is not built")

SHAPES = ((1, 1), (3, 2), (7, 5), (20, 1), (11, 3))


def make(seed=0, **options):
    torch.manual_seed(seed)
    return FusedxLSTM(3, 37, backend="cpu", **options)


def step(module, T, B, seed):
    """Output, states and gradients for an input of the seed."""
    x = torch.randn(T, B, 3, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    output, state = module(x)
    return [output, *state, *torch.autograd.grad(output.square().sum(), [x, *module.parameters()])]


def equal(got, expected):
    return len(got) == len(expected) and all(map(torch.equal, got, expected))


@pytest.fixture
def thread_count():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def on_eight_threads(calls, function):
    """What ``function`` gives for each of the calls, eight threads taking them in turns."""
    start = threading.Barrier(8)

    def work(worker):
        start.wait()
        return [(n, function(*calls[n])) for n in range(worker, len(calls), 8)]

    with ThreadPoolExecutor(8) as pool:
        results = dict(result for each in pool.map(work, range(8)) for result in each)
    return [results[n] for n in range(len(calls))]


@pytest.mark.usefixtures("thread_count")
@pytest.mark.parametrize("several", (False, True))
def test_eight_threads_at_once(several):
    """One module or one for each, other shapes in turns."""
    torch.set_num_threads(1)
    modules = [make(seed if several else 0, cell=("lstm", "slstm")[seed % 2 if several else 0], bidirectional=True)
               for seed in range(8 if several else 1)]
    calls = [(modules[n % len(modules)], *SHAPES[n % len(SHAPES)], n) for n in range(48)]
    expected = [step(*call) for call in calls]

    def work(*call):
        torch.set_num_threads(1)  # the count is each thread's own
        return step(*call)

    assert all(map(equal, on_eight_threads(calls, work), expected))


@pytest.mark.usefixtures("thread_count")
def test_eight_threads_while_the_number_of_threads_changes():
    """Of the recurrence: torch's products of the layer round in another way for another number of threads."""
    torch.set_num_threads(1)
    weight = torch.randn(4 * 96, 96) / 10
    calls = [(T, B, n) for n, (T, B) in enumerate(3 * ((40, 2), (30, 5), (60, 1), (25, 7)))]

    def run(T, B, seed):
        wx = torch.randn(T, B, 4 * 96, generator=torch.Generator().manual_seed(seed), requires_grad=True)
        output, state = recurrence(wx, weight, cell=("lstm", "slstm")[seed % 2], backend="cpu")
        return [output, *state, *torch.autograd.grad(output.square().sum(), wx)]

    def work(T, B, seed):
        torch.set_num_threads(1 + seed % 3)
        return run(T, B, seed)

    expected = [run(*call) for call in calls]
    assert all(map(equal, on_eight_threads(calls, work), expected))


class Steps(Dataset):
    """Items that are results of a module: what a worker computes, its parent can compare."""

    def __init__(self, module):
        self.module = module

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return [value.detach() for value in step(self.module, 7, 3, index)]


@pytest.mark.usefixtures("thread_count")
@pytest.mark.parametrize("method", ("fork", "spawn"))
def test_workers_of_a_data_loader(method):
    """Forked after the parent's threads ran kernels; workers have one thread, as DataLoader sets it."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    torch.set_num_threads(2)
    data = Steps(make())
    expected = [data[index] for index in range(len(data))]
    got = list(DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=method))
    assert all(map(equal, got, expected))


@pytest.mark.parametrize("calls, printed", (("count()", ["leaving"]), ("range(1)", ["leaving", "returned"])))
def test_the_interpreter_exits_while_a_call_runs(calls, printed):
    """A daemon thread, which calls without an end, is abandoned without a word; another thread's call is waited for.

    The compiled function is called by itself: torch's, which cpu.inference allocates with, would abort the process.
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(f"""
        import threading, time, torch
        from itertools import count
        from types import SimpleNamespace
        from xlstm_fused.backends import cpu
        from xlstm_fused.rows import Rows

        class Slow:
            # Taken down by an interpreter that has begun to end: the call returns into that.
            def __del__(self, sleep=time.sleep):
                sleep(1.5)

        slow, rows, started = Slow(), Rows.dense(600, 1, False), threading.Event()
        tensors = torch.zeros(600, 1, 4, 1, 1024), torch.zeros(1, 4, 1, 1024, 1024)
        compiled, recorded = cpu._cpu, []
        cpu._cpu = SimpleNamespace(forward=lambda *arguments: recorded.append(arguments))
        results = cpu.inference(*tensors, *[None] * 5, False, None, rows, "lstm", False)

        def work():
            started.set()
            for _ in {calls}:
                compiled.forward(*recorded[0])
            print("returned", flush=True)

        threading.Thread(target=work, daemon={calls == "count()"}).start()
        started.wait()
        time.sleep(0.1)
        print("leaving", flush=True)
    """)], capture_output=True, text=True, timeout=240)
    assert (done.returncode, sorted(done.stdout.split()), done.stderr) == (0, printed, "")


def test_inference_mode():
    module = make(num_layers=2, bidirectional=True)
    x = torch.randn(7, 3, 3)
    expected, state = module(x)
    with torch.inference_mode():
        output, final = module(x)
        inner, _ = module(x * 1)
    assert output.is_inference() and torch.equal(output, expected) and torch.equal(inner, expected)
    assert all(map(torch.equal, final, state))
    module(x)[0].sum().backward()
    assert all(value.grad is not None for value in module.parameters())


def test_hooks():
    """Of the module, its parameters and tensors: each called once, with the values that it would get of nn.LSTM."""
    module, calls = make(), []
    expected = step(module, 7, 3, 0)
    module.register_forward_pre_hook(lambda _, inputs: calls.append("before"))
    module.register_forward_hook(lambda _, inputs, outputs: calls.append("after"))
    module.register_full_backward_hook(lambda _, d_in, d_out: calls.append("backward"))
    module.weight_hh_l0.register_hook(lambda gradient: calls.append("weight"))
    assert equal(step(module, 7, 3, 0), expected)
    assert sorted(calls) == ["after", "backward", "before", "weight"]


def test_reentrant_backward():
    """A backward inside a backward, on the module whose gradient is being computed, and on several threads."""
    module = make()
    expected = step(module, 7, 3, 0)
    inner = []

    class Nested(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            with torch.enable_grad():
                inner.append(step(module, 7, 3, 0))
            return gradient

    def run(_):
        x = torch.randn(7, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
        output, state = module(Nested.apply(x))
        output = Nested.apply(output)
        return [output, *state, *torch.autograd.grad(output.square().sum(), [x, *module.parameters()])]

    with ThreadPoolExecutor(3) as pool:
        results = [run(0), *pool.map(run, range(3))]
    assert all(equal(got, expected) for got in results + inner) and len(inner) == 8


def test_a_fork_that_does_not_call_is_harmless():
    """The parent's threads keep working after a child came and went."""
    module = make()
    expected = step(module, 7, 3, 0)
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert equal(step(module, 7, 3, 0), expected)
