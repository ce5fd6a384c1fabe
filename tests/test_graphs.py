"""Which launches of the GPU backends are done anew, which are captured, and which replayed, without a GPU."""

import threading
from types import SimpleNamespace

import pytest
import torch

from xlstm_fused.backends import graphs

CPU = torch.device("cpu")


@pytest.fixture
def log(monkeypatch):
    """What happened, in order; a captured graph does its launches again when it is replayed."""
    events = []

    def capture(launches, device):
        events.append("capture")

        def replay():
            events.append("replay")
            launches()

        return SimpleNamespace(replay=replay)

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "allowed", lambda device: True)
    return events


def test_first_launched_then_captured_then_replayed(log):
    cache = graphs.Graphs()
    for _ in range(3):
        cache.run(("a",), lambda: log.append("launch"), CPU)
    assert log == ["launch", "capture", "replay", "launch", "replay", "launch"]


def test_another_key_is_another_graph(log):
    cache = graphs.Graphs()
    for key in "abab":
        cache.run((key,), lambda key=key: log.append(key), CPU)
    assert log == ["a", "b", "capture", "replay", "a", "capture", "replay", "b"]


def test_the_least_recently_used_are_forgotten(log):
    cache = graphs.Graphs(capacity=2)
    for key in "aabcab":
        cache.run((key,), lambda key=key: log.append(key), CPU)
    # c pushed a out, a then b, b then c.
    assert log == ["a", "capture", "replay", "a", "b", "c", "a", "b"]


def test_no_graph_where_none_is_allowed(log, monkeypatch):
    monkeypatch.setattr(graphs, "allowed", lambda device: False)
    cache = graphs.Graphs()
    for _ in range(3):
        cache.run(("a",), lambda: log.append("launch"), CPU)
    assert log == ["launch"] * 3


def test_launches_that_fail_are_not_remembered(log):
    cache = graphs.Graphs()

    def fail():
        raise RuntimeError("does not compile")

    with pytest.raises(RuntimeError, match="does not compile"):
        cache.run(("a",), fail, CPU)
    cache.run(("a",), lambda: log.append("launch"), CPU)
    assert log == ["launch"]


def test_one_capture_whatever_threads_do(log):
    cache = graphs.Graphs()
    cache.run(("a",), lambda: None, CPU)
    threads = [threading.Thread(target=cache.run, args=(("a",), lambda: None, CPU)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log == ["capture"] + ["replay"] * 8


def test_in_turns_a_graph_waits_for_the_last_one_whatever_streams_they_are_on(log, monkeypatch):
    """Of its own device; the launches themselves do not wait."""
    def stream(name):
        return SimpleNamespace(name=name, wait_event=lambda event: log.append(f"{name} waits for {event.name}"))

    class Event:
        def record(self, stream):
            self.name = stream.name

    monkeypatch.setattr(torch.cuda, "Event", Event)
    cache = graphs.Graphs(in_turns=True)
    for device, key, name in (("a", 1, "s"), ("a", 1, "s"), ("a", 2, "s"), ("a", 2, "t"), ("b", 3, "u"), ("b", 3, "u"),
                              ("a", 1, "t")):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _, name=name: stream(name))
        cache.run((key,), lambda: log.append("launch"), device)
    assert log == ["launch", "capture", "replay", "launch", "launch", "capture", "t waits for s", "replay", "launch",
                   "launch", "capture", "replay", "launch", "t waits for t", "replay", "launch"]


@pytest.mark.parametrize("capturing, hip, device, expected", (
    (False, None, "cuda", True), (True, None, "cuda", False), (False, "6.4", "cuda", False),
    (False, None, "cpu", False)))
def test_where_graphs_are_allowed(monkeypatch, capturing, hip, device, expected):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert graphs.allowed(torch.device(device)) is expected


class FakeGraph:
    """As much of torch.cuda.CUDAGraph as a capture touches."""

    def __init__(self, log):
        self.log = log

    def capture_begin(self, capture_error_mode):
        self.log.append(("begin", capture_error_mode))

    def capture_end(self):
        self.log.append(("end",))


@pytest.mark.parametrize("fails", (False, True))
def test_a_capture_always_ends(monkeypatch, fails):
    log = []

    def launches():
        log.append(("launch",))
        if fails:
            raise RuntimeError("no")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(log))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: None)
    monkeypatch.setattr(torch.cuda, "current_blas_handle", lambda: log.append(("handle",)))
    if fails:
        with pytest.raises(RuntimeError, match="^no$"):
            graphs.capture(launches, CPU)
    else:
        assert isinstance(graphs.capture(launches, CPU), FakeGraph)
    assert log == [("handle",), ("begin", "thread_local"), ("launch",), ("end",)]
