"""The backends: what can run a recurrence, and on what.

A backend is a module with the functions ``inference``, ``forward`` and ``backward`` (signatures and shapes in
:mod:`xlstm_fused.backends.reference`) and ``refuses(device_type, dtype, cell)``, which returns None or the reason in
words. One that can form the input product itself has ``takes_input(head_dim, inputs, dtype, device)``,
``inference_from_input`` and ``forward_from_input``. Modules are imported when first asked for.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from ..cells import CELLS
from ..tracing import constant

ORDER = ("cuda", "triton", "cpu", "reference")
"""The order in which ``backend="auto"`` asks."""

DEVICE = {"cuda": "cuda", "triton": "cuda", "cpu": "cpu", "reference": "cpu"}
"""The device type that the table of :func:`backends` asks each backend about."""


class Module(Protocol):
    """What the module of a backend has."""

    def refuses(self, device_type: str, dtype: torch.dtype, cell: str) -> str | None: ...
    def inference(self, *arguments: Any) -> tuple[Tensor, ...]: ...
    def forward(self, *arguments: Any) -> tuple[Tensor, ...]: ...
    def backward(self, *arguments: Any) -> tuple[Tensor, ...]: ...


class Backend(NamedTuple):
    """One row of the table: a backend, whether this machine can run it, and if not, why."""

    name: str
    ready: bool
    reason: str | None


class BackendTable(dict[str, Backend]):
    """Backend name -> :class:`Backend`, in the order in which ``backend="auto"`` asks; ``print`` shows a table."""

    def __str__(self) -> str:
        width = max(map(len, self))
        lines = [f"{row.name:<{width}}  {'ready' if row.ready else f'not ready: {row.reason}'}"
                 for row in self.values()]
        return "\n".join(lines)


@functools.cache
def load(name: str) -> Module:
    """The module of backend ``name``."""
    return cast(Module, importlib.import_module(f"{__name__}.{name}"))


def refuses(name: str, device_type: str, dtype: torch.dtype, cell: str) -> str | None:
    """Why backend ``name`` does not run ``cell`` in ``dtype`` on ``device_type``; None if it does."""
    return load(name).refuses(device_type, dtype, cell)


# torch.compile runs this while it traces: importing a module is nothing to put into a graph.
@constant
def choose(name: str, device_type: str, dtype: torch.dtype, cell: str) -> str:
    """The backend to run: ``name``, one of :data:`ORDER`, or for "auto" the first of those that does not refuse.

    Raises:
        RuntimeError: a named backend refuses.
    """
    if name == "auto":
        return next(each for each in ORDER if refuses(each, device_type, dtype, cell) is None)
    reason = refuses(name, device_type, dtype, cell)
    if reason is not None:
        raise RuntimeError(f"backend={name!r} cannot run cell={cell!r} in {dtype} on a {device_type} device: {reason}")
    return name


@constant
def takes_input(name: str, head_dim: int, inputs: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether backend ``name`` forms the product of ``inputs`` features with their weights itself."""
    backend = load(name)
    return hasattr(backend, "takes_input") and backend.takes_input(head_dim, inputs, dtype, device)


def backends() -> BackendTable:
    """What this machine can run, and why not the rest: a mapping of name to :class:`Backend`.

    A backend counts as ready if it runs every cell in float32 on its own kind of device.
    """
    table = BackendTable()
    for name in ORDER:
        reasons = (refuses(name, DEVICE[name], torch.float32, cell) for cell in CELLS)
        reason = next((each for each in reasons if each is not None), None)
        table[name] = Backend(name, reason is None, reason)
    return table
