"""Make models that are built from the xlstm or tirex packages run on our kernels, without changing the models."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, NoReturn

from torch import Tensor

from .. import checks
from .slstm import arranged, cell_weights, run

# Versions whose code of the cell was read: within each line it is the same but for how kernels are compiled.
SUPPORTED = {
    "xlstm": ("xlstm", "xlstm.blocks.slstm.cell", ("2.0.4", "2.0.5", "2.0.6")),
    "tirex": ("tirex-ts", "tirex.models.slstm.cell", ("1.3.0", "1.4.0", "1.4.1", "1.4.2")),
}
_active: Patch | None = None


class Patch:
    """What :func:`patch_xlstm` returns: the patch until :meth:`undo`, or until the end of a ``with`` block.

    ``packages`` names what was patched.
    """

    def __init__(self, packages: tuple[str, ...], replaced: list[tuple[object, str, object]]) -> None:
        self.packages = packages
        self._replaced = replaced

    def undo(self) -> None:
        """Put the packages' own code back. Calling it again does nothing."""
        global _active
        while self._replaced:
            setattr(*self._replaced.pop())
        if _active is self:
            _active = None

    close = undo

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<patch of {', '.join(self.packages)}, {'active' if self._replaced else 'undone'}>"


def patch_xlstm(packages: tuple[str, ...] | None = None, *, backend: str = "auto") -> Patch:
    """Run every sLSTM cell of the installed xlstm and tirex packages on our kernels, until undone.

    Models, parameters, state dicts and their layouts stay as they are, models that exist already included. Nothing is
    compiled: cells of backend "cuda" can be made and run without nvcc, on any device. Call it, and ``.undo()`` what
    it returns; or use it as a context manager::

        with patch_xlstm():
            model(x)

    Args:
        packages: what to patch, of "xlstm" and "tirex"; None for those that are installed.
        backend: as in :func:`xlstm_fused.recurrence`.

    What differs from the packages' own cells: computation is in the dtype of the input, or autocast's, with the
    states other than ``h`` in float32, where xlstm's cuda backend and tirex round states to bfloat16 at every step;
    ``n = 0`` is asked of each element instead of the whole batch; gradients are exact, where cuda kernels drop some;
    xlstm's ``sLSTMCell.step`` returns the new state, where the package's returns the one that it was given; tirex's
    clamp of the forget gate at 15 (a difference of 3e-7 in its logarithm) is not there. Cells of backend "cuda" that
    are made under the patch have no kernel once it is undone.

    Raises:
        ModuleNotFoundError: a package is not installed.
        RuntimeError: its version is not one whose code was checked, a patch is active already, or, when a cell runs,
            its config cuts or clips gradients or outputs, or it was made under a patch that is undone.
        ValueError: an argument has an unknown value.
    """
    global _active
    checks.backend_name(backend)
    if packages is not None:
        unknown = sorted(set(packages) - set(SUPPORTED)) if isinstance(packages, (tuple, list)) else [packages]
        if unknown or not packages:
            raise ValueError(f"packages: expected a tuple of {tuple(SUPPORTED)}, got {packages!r}")
    if _active is not None:
        raise RuntimeError(f"patch_xlstm: expected no active patch, got {_active!r}; undo it first")
    wanted = tuple(packages or (name for name in SUPPORTED if _version(name) is not None))
    if not wanted:
        raise ModuleNotFoundError("patch_xlstm: expected xlstm or tirex-ts to be installed, got neither")
    modules = {name: _module(name) for name in wanted}
    replacements = []
    if "xlstm" in modules:
        base = modules["xlstm"].sLSTMCellBase
        replacements += [(base, "forward", _xlstm_forward(backend)), (base, "step", _xlstm_forward(backend)),
                         (modules["xlstm"], "sLSTMCellFuncGenerator", _NoKernel)]
    if "tirex" in modules:
        replacements.append((modules["tirex"].sLSTMCell, "forward", _tirex_forward(backend)))
    _active = Patch(wanted, [(owner, name, getattr(owner, name)) for owner, name, _ in replacements])
    for replacement in replacements:
        setattr(*replacement)
    return _active


def _version(name: str) -> str | None:
    try:
        return version(SUPPORTED[name][0])
    except PackageNotFoundError:
        return None


def _module(name: str) -> ModuleType:
    """The module that has the package's cell, of a version that is known."""
    distribution, module, versions = SUPPORTED[name]
    found = _version(name)
    if found is None:
        raise ModuleNotFoundError(f"patch_xlstm: expected {distribution} to be installed, got no such package")
    if found not in versions:
        raise RuntimeError(f"patch_xlstm: expected {distribution} of version {' or '.join(versions)}, the ones whose "
                           f"cell was checked, got {found}")
    return importlib.import_module(module)


class _NoKernel:
    """Stands for the autograd function that a cell of backend "cuda" compiles when it is made."""

    def __init__(self, *_: object) -> None:
        pass

    def apply(self, *_: object) -> NoReturn:
        raise RuntimeError("this sLSTM cell was made under patch_xlstm(), without a kernel of its own, and the patch "
                           "is undone: make the cell again, or patch again")


def _xlstm_forward(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def forward(self: Any, input: Tensor, state: Tensor | None = None,
                lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check_input(input)
        config = self.config
        for name in ("gradient_recurrent_cut", "gradient_recurrent_clipval", "forward_clipval"):
            if getattr(config, name):
                raise RuntimeError(f"patch_xlstm: expected a config without {name}, since results here are exact, "
                                   f"got {getattr(config, name)}")
        batch_first = config.input_shape == "BSGNH"
        weight_hh, bias = cell_weights(self._recurrent_kernel_, self._bias_)
        output, state = run(input, state, weight_hh, bias, cell=config.function, batch_first=batch_first,
                            backend=backend)
        return arranged(output, config.num_heads, batch_first, config.output_shape), state.to(output.dtype)

    return forward


def _tirex_forward(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def forward(self: Any, input: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        weight_hh, bias = cell_weights(self._recurrent_kernel_, self._bias_)
        output, state = run(input, state, weight_hh, bias, cell="slstm", batch_first=True, backend=backend)
        return arranged(output, self.config.num_heads, True, "BNSH"), state.to(output.dtype)

    return forward
