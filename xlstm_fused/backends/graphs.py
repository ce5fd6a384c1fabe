"""One CUDA graph in place of many launches, where the same launches come again.

A pass that launches for every step is bound by what a launch costs in Python. Launches are the same if all that they
take is: kernel, sizes, options and the address of every tensor. In a loop of training or serving they are, since
torch's allocator hands out the same memory in every iteration. So what comes a second time is captured, and from then
on is one call that enqueues the very same launches on the current stream.

A graph holds addresses, not memory, and is only run for tensors that lie there now: nothing is copied into or out of
it, and whatever became of its memory in between does not matter.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

CAPACITY = 64
"""Sets of launches remembered at a time; each of the graphs among them takes memory for every one of its launches."""


def allowed(device: torch.device) -> bool:
    """Whether launches may go into a graph of ours; not if they already go into one that the user captures."""
    return device.type == "cuda" and torch.version.hip is None and not torch.cuda.is_current_stream_capturing()


def capture(launches: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """A ``torch.cuda.CUDAGraph`` of what ``launches()`` enqueues, which is not run.

    Not by ``torch.cuda.graph``, which waits for the device. The stream is a new one from torch's pool of those with
    high priority, which hardly anything else uses; other threads go on with whatever they do.
    """
    graph = torch.cuda.CUDAGraph()
    # The library of products wants a handle of this thread, which cannot be made while a stream is captured.
    torch.cuda.current_blas_handle()
    with torch.cuda.stream(torch.cuda.Stream(device, priority=-1)):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            launches()
        finally:
            graph.capture_end()
    return graph


class Graphs:
    """The launches seen last, by key, with a graph of those that came more than once.

    ``in_turns``: a device runs one of the graphs at a time, whatever streams they are on.
    """

    def __init__(self, capacity: int = CAPACITY, in_turns: bool = False) -> None:
        self._capacity, self._in_turns, self._lock = capacity, in_turns, threading.Lock()
        self._ends: dict[torch.device, torch.cuda.Event] = {}
        # None for launches that came once. The oldest come first.
        self._graphs: OrderedDict[tuple[Any, ...], torch.cuda.CUDAGraph | None] = OrderedDict()

    def run(self, key: tuple[Any, ...], launches: Callable[[], None], device: torch.device) -> None:
        """Do ``launches()`` on the current stream of ``device``, the current device.

        ``key`` has everything that they depend on. They may enqueue kernels and nothing else, and not wait.
        """
        if not allowed(device):
            launches()
            return
        # Two threads must not touch one graph at the same time, and a replay takes microseconds.
        with self._lock:
            if key in self._graphs:
                graph = self._graphs[key]
                if graph is None:
                    graph = self._graphs[key] = capture(launches, device)
                self._replay(graph, device)
                self._graphs.move_to_end(key)
                return
        # Compiles the kernels and loads them, neither of which a capture could do.
        launches()
        with self._lock:
            self._graphs.setdefault(key, None)
            if len(self._graphs) > self._capacity:
                # A graph that still runs is freed when it is through.
                self._graphs.popitem(last=False)

    def _replay(self, graph: torch.cuda.CUDAGraph, device: torch.device) -> None:
        if not self._in_turns:
            graph.replay()
            return
        stream = torch.cuda.current_stream(device)
        if device in self._ends:
            stream.wait_event(self._ends[device])
        graph.replay()
        self._ends.setdefault(device, torch.cuda.Event()).record(stream)
