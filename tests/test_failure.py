"""What a call leaves behind that does not end well: an error, and everything else as it was."""

import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from problems import Problem
from test_reference import through_ops
from tolerances import assert_close

from xlstm_fused import FusedxLSTM
from xlstm_fused.backends import backends, cpu, reference
from xlstm_fused.cells import CELLS
from xlstm_fused.rows import Rows

needs_cpu = pytest.mark.skipif(not backends()["cpu"].ready, reason="the cpu backend is not built")

# Seconds of work, were it not for the signal: most of it is reading 16 MiB of matrix per step.
T, D = 2500, 1024


@pytest.fixture
def interrupting():
    """Starts signals, of which the second is a KeyboardInterrupt. Those that wait for a call to end are one by then:
    whoever gets the error handles them while the call runs."""
    seen = []

    def handle(number, frame):
        seen.append(number)
        if len(seen) == 2:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handle)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def forced_plan():
    yield
    cpu.forced_plan = None


def arguments_of_backward(rows, weight, cell="lstm"):
    kind = CELLS[cell]
    gates, states = torch.zeros(rows.P, 1, len(kind.gates), 1, D), torch.zeros(len(kind.states) - 1, rows.P, 1, 1, D)
    output = torch.zeros(rows.P, 1, 1, D)
    return (weight, None, None, None, None, None, False, None, gates, states, output, output, None, None, None, None,
            rows, cell, False)


@needs_cpu
@pytest.mark.usefixtures("forced_plan")
@pytest.mark.parametrize("plan", ((1, 1, 1), (2, 2, 1), (4, 2, 2), (2, 1, 2)), ids=str)
@pytest.mark.parametrize("name", ("inference", "forward", "backward"))
def test_a_signal_ends_a_long_call(interrupting, plan, name):
    """By one thread, by a team, by teams, and by threads of which the calling one has nothing to do but wait."""
    lengths = torch.tensor([T, 1]) if plan == (2, 1, 2) else None
    rows, weight = Rows.dense(T, plan[2], False, lengths), torch.zeros(1, 4, 1, D, D)
    cpu.forced_plan = plan
    arguments = arguments_of_backward(rows, weight) if name == "backward" else (
        torch.zeros(rows.P, 1, 4, 1, D), weight, None, None, None, None, None, False, None, rows, "lstm", False)
    interrupting()
    with pytest.raises(KeyboardInterrupt):
        getattr(cpu, name)(*arguments)
    cpu.forced_plan = None
    problem = Problem.random(dtype=torch.float32)
    again, expected = (through_ops(problem.tensors, problem, backend) for backend in ("cpu", "reference"))
    for value, want in zip(again, expected):
        assert_close(value, want)


@needs_cpu
def test_a_layer_is_usable_after_an_interrupt(interrupting):
    layer, x = FusedxLSTM(3, D, backend="cpu"), torch.randn(T, 1, 3)
    expected, _ = layer(x[:5])
    gradients = torch.autograd.grad(expected.sum(), list(layer.parameters()))
    weights = [value.detach().clone() for value in layer.parameters()]
    interrupting()
    with pytest.raises(KeyboardInterrupt):
        layer(x)
    assert all(map(torch.equal, layer.parameters(), weights)) and layer.weight_hh_l0.grad is None
    output, _ = layer(x[:5])
    output.sum().backward()
    assert torch.equal(output, expected)
    assert all(torch.equal(value.grad, want) for value, want in zip(layer.parameters(), gradients))


def run(code):
    """Standard output of a program of its own."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_cpu
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space by /proc and RLIMIT_AS")
def test_no_memory_for_the_workspace():
    """The packed matrix, 16 MiB, does not fit; all that torch allocates does."""
    printed = run("""
        import resource, torch
        from xlstm_fused import FusedxLSTM

        def limit(more):
            pages = int(open("/proc/self/statm").read().split()[0])
            most = resource.RLIM_INFINITY if more is None else pages * resource.getpagesize() + more
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

        torch.set_num_threads(1)  # a runtime that cannot start a thread ends the process
        layer, x = FusedxLSTM(2, 1024, backend="cpu"), torch.randn(2, 1, 2)
        weights = [value.detach().clone() for value in layer.parameters()]
        output, _ = layer(x)
        expected = torch.autograd.grad(output.sum(), list(layer.parameters()), retain_graph=True)
        for call in (lambda: layer(x), lambda: output.sum().backward()):
            limit(6 << 20)
            try:
                call()
            except MemoryError as error:
                print(error)
            limit(None)
            assert all(value.grad is None for value in layer.parameters())
            assert all(map(torch.equal, layer.parameters(), weights))
        again, _ = layer(x)
        again.sum().backward()
        assert torch.equal(again, output)
        assert all(torch.equal(value.grad, want) for value, want in zip(layer.parameters(), expected))
    """)
    assert printed == 2 * "the cpu backend found no memory for its copies of the weights and its buffers\n"


@pytest.mark.parametrize("name", [name for name in ("reference", "cpu") if backends()[name].ready])
@pytest.mark.parametrize("function", ("inference", "forward", "backward"))
def test_an_error_in_a_backend_does_not_outlive_its_call(monkeypatch, name, function):
    layer, x = FusedxLSTM(3, 5, 2, bidirectional=True, backend=name), torch.randn(6, 2, 3)
    expected, _ = layer(x)
    gradients = torch.autograd.grad(expected.sum(), list(layer.parameters()))

    def fails(*arguments):
        raise RuntimeError("as if the device had failed")

    module = {"reference": reference, "cpu": cpu}[name]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="as if the device had failed"):
        # A backend that takes an input has another function for that.
        taken = f"{function}_from_input"
        patch.setattr(module, taken if hasattr(module, taken) else function, fails)
        with torch.set_grad_enabled(function != "inference"):
            layer(x)[0].sum().backward()
    assert all(value.grad is None for value in layer.parameters())
    output, _ = layer(x)
    output.sum().backward()
    assert torch.equal(output, expected)
    assert all(torch.equal(value.grad, want) for value, want in zip(layer.parameters(), gradients))
