"""Layers and weights of other packages as ours, and back.

Official state dicts store what their kernels like to read, and some name gates by what they are not. A conversion that
is half right loads without complaint, so these are functions, tested against the packages themselves for outputs,
states and gradients.
"""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from . import checks
from .compat.flash import from_flashrnn
from .compat.slstm import SLSTMBlock, SLSTMCell, SLSTMLayer, cell_weights
from .module import FusedxLSTM
from .slides import from_slides

__all__ = ["from_flashrnn", "from_lstm", "from_slides", "from_xlstm", "to_lstm"]

M = TypeVar("M", bound=nn.Module)
# A parameter's value, and whether it wants a gradient.
Value: TypeAlias = tuple[Tensor, bool]

OPTIONS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")


def from_lstm(lstm: nn.LSTM, *, backend: str = "auto") -> FusedxLSTM:
    """A :class:`FusedxLSTM` that computes what an ``nn.LSTM`` does, with copies of its parameters.

    Every option is kept, and of each parameter dtype, device and ``requires_grad``; so is the training mode. Hooks are
    not.

    Args:
        lstm: the layer. backend: as in :class:`FusedxLSTM`.

    Raises:
        TypeError: ``lstm`` is no ``nn.LSTM``.
        ValueError: its parameters are not the plain ones (parametrised, pruned), or have an unsupported dtype.
    """
    if not isinstance(lstm, nn.LSTM):
        raise TypeError(f"lstm: expected an nn.LSTM, got {type(lstm).__name__}")
    options = {name: getattr(lstm, name) for name in OPTIONS}
    return _copied(lstm, FusedxLSTM(**options, device="meta", backend=backend), "lstm")


def to_lstm(layer: FusedxLSTM) -> nn.LSTM:
    """The ``nn.LSTM`` that computes what ``layer`` does: the reverse of :func:`from_lstm`, keeping the same.

    ``backend`` and ``checkpoint_every``, which change no result, and ``forget_bias``, which only chose initial values,
    are left behind.

    Raises:
        TypeError: ``layer`` is no :class:`FusedxLSTM`.
        ValueError: it is something that ``nn.LSTM`` cannot be: another cell, more than one head, or a layer with
            residual, layer_norm, recurrent_dropout or recurrent_dtype; or its parameters are not the plain ones.
    """
    if not isinstance(layer, FusedxLSTM):
        raise TypeError(f"layer: expected a FusedxLSTM, got {type(layer).__name__}")
    for name, only, reason in (
            ("cell", "lstm", "nn.LSTM has no other cell"), ("num_heads", 1, "its recurrent matrix is not in blocks"),
            ("residual", False, "it adds no inputs"), ("layer_norm", False, "it normalises nothing"),
            ("recurrent_dropout", 0.0, "it drops between layers only"),
            ("recurrent_dtype", None, "it rounds no weights")):
        if getattr(layer, name) != only:
            raise ValueError(f"layer.{name}: expected {only!r}, since nn.LSTM could not do the same: {reason}; got "
                             f"{getattr(layer, name)!r}")
    lstm = nn.LSTM(**{name: getattr(layer, name) for name in OPTIONS}, device="meta")
    lstm = _copied(layer, lstm, "layer")
    # Copies are separate blocks of memory, and cuDNN wants one.
    lstm.flatten_parameters()
    return lstm


def _copied(source: nn.Module, target: M, name: str) -> M:
    """``target``, made on the meta device, with copies of the parameters of ``source``, of the same names."""
    values, expected = dict(source.named_parameters()), dict(target.named_parameters())
    if list(values) != list(expected) or any(values[key].shape != expected[key].shape for key in values):
        raise ValueError(f"{name}: expected the parameters {list(expected)} alone (remove parametrisations and pruning "
                         f"first), got {list(values)}")
    for key, value in values.items():
        checks.floating(f"{name}.{key}", value)
    return _filled(target, {key: (value, value.requires_grad) for key, value in values.items()}, source.training)


def _filled(target: M, values: dict[str, Value], training: bool) -> M:
    """``target``, made on the meta device, with a copy of each value as its parameter, and whether that wants a
    gradient."""
    copies = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, (value, _) in values.items()}
    target.load_state_dict(copies, assign=True)
    for key, parameter in target.named_parameters():
        parameter.requires_grad_(values[key][1])
    return target.train(training)


def from_xlstm(source: nn.Module | dict[str, Tensor], config: Any = None, *,
               backend: str = "auto") -> SLSTMCell | SLSTMLayer | SLSTMBlock:
    """An sLSTM cell, layer or block of the xlstm package as a module of :mod:`xlstm_fused.compat.slstm`.

    The result takes and returns what the package's does and can take its place in a model. Both of the package's
    layouts are read, that of backend "vanilla" and that of "cuda": the shape of the recurrent kernel tells which.

    Args:
        source: an ``sLSTMCell``, ``sLSTMLayer`` or ``sLSTMBlock``, or its state dict (without the prefix that it has
            in a larger model). dtypes, devices and ``requires_grad`` are kept, of four gates that become one
            parameter if any has it; of a module, training mode too.
        config: None for a module; for a state dict, which says neither the function of the cell nor the activation of
            the feedforward nor dropout, the package's config of that module (making one compiles nothing).
        backend: as in :class:`FusedxLSTM`.

    Raises:
        TypeError: ``source`` is neither module nor state dict, or a config is missing or one too many.
        ValueError: names, shapes or options are not those of an sLSTM, or the config cuts or clips gradients or
            outputs.

    What converts to what, checked in xlstm 2.0.6:

    - ``_recurrent_kernel_`` and ``_bias_``: see :func:`xlstm_fused.compat.slstm.cell_weights`.
    - ``fgate`` projects the *input* gate and ``igate`` the *forget* gate, from the convolution; ``zgate`` and
      ``ogate`` those of their names, from the layer's input.
    - gains of norms are stored minus 1.
    """
    values: dict[str, Value]
    if isinstance(source, nn.Module):
        if config is not None:
            raise TypeError(f"config: expected None beside a module, which has its own, got {type(config).__name__}")
        config = getattr(source, "config", None)
        values = {key: (value, value.requires_grad) for key, value in source.named_parameters()}
        training = source.training
    elif isinstance(source, dict):
        if config is None:
            raise TypeError("config: expected the package's config beside a state dict, got None")
        values, training = {key: (value, True) for key, value in source.items()}, True
    else:
        raise TypeError(f"source: expected a module of the xlstm package or its state dict, "
                        f"got {type(source).__name__}")
    for build, prefix in ((_cell, ""), (_layer, "slstm_cell."), (_block, "xlstm.slstm_cell.")):
        if f"{prefix}_recurrent_kernel_" in values:
            module, converted = build(values, config, backend)
            if values:
                raise ValueError(f"source: expected no parameters but those of the package's {type(module).__name__}, "
                                 f"got {sorted(values)} too")
            return _filled(module, converted, training)
    raise ValueError("source: expected the parameters of an sLSTMCell, sLSTMLayer or sLSTMBlock, of which one is "
                     f"_recurrent_kernel_, got {sorted(values)}")


def _take(values: dict[str, Value], name: str, shape: dict[str, int] | None = None, plus: int = 0) -> Value:
    """``(value + plus, requires_grad)`` of a parameter of the package, which is removed from ``values``."""
    if name not in values:
        raise ValueError(f"source: expected a parameter {name}, got {sorted(values)}")
    value, wants_gradient = values.pop(name)
    if shape is not None:
        checks.shape(name, value, shape)
    return value + plus if plus else value, wants_gradient


def _cell(values: dict[str, Value], config: Any, backend: str, prefix: str = "") -> tuple[SLSTMCell, dict[str, Value]]:
    for name in ("gradient_recurrent_cut", "gradient_recurrent_clipval", "forward_clipval"):
        if getattr(config, name):
            raise ValueError(f"config.{name}: expected none, since results here are exact, "
                             f"got {getattr(config, name)}")
    kernel, kernel_wants = _take(values, f"{prefix}_recurrent_kernel_")
    bias, bias_wants = _take(values, f"{prefix}_bias_")
    weight_hh, bias = cell_weights(kernel, bias)
    H, N = bias.shape[0] // 4, kernel.shape[0]
    if (config.hidden_size, config.num_heads) != (H, N):
        raise ValueError(f"config: expected hidden_size and num_heads of the parameters, {(H, N)}, "
                         f"got {(config.hidden_size, config.num_heads)}")
    module = SLSTMCell(H, N, cell=config.function, input_shape=config.input_shape,
                       output_shape=config.output_shape, backend=backend, device="meta")
    return module, {"weight_hh": (weight_hh, kernel_wants), "bias": (bias, bias_wants)}


def _layer(values: dict[str, Value], config: Any, backend: str,
           prefix: str = "") -> tuple[SLSTMLayer, dict[str, Value]]:
    cell, weights = _cell(values, config, backend, f"{prefix}slstm_cell.")
    converted = {f"slstm_cell.{name}": value for name, value in weights.items()}
    H, N = cell.hidden_size, cell.num_heads
    # The package's fgate feeds the input gate, and its igate the forget gate.
    gates = [_take(values, f"{prefix}{name}.weight", {"N": N, "D out": H // N, "D in": H // N})
             for name in ("fgate", "igate", "zgate", "ogate")]
    converted["weight_ih"] = torch.stack([gate for gate, _ in gates]), any(wants for _, wants in gates)
    if width := config.conv1d_kernel_size:
        converted["conv.weight"] = _take(values, f"{prefix}conv1d.conv.weight", {"H": H, "1": 1, "steps": width})
        converted["conv.bias"] = _take(values, f"{prefix}conv1d.conv.bias", {"H": H})
    if config.group_norm_weight:
        converted["norm_weight"] = _take(values, f"{prefix}group_norm.weight", {"H": H}, plus=1)
    return SLSTMLayer(H, N, conv1d_kernel_size=width, dropout=config.dropout, cell=config.function,
                      group_norm_weight=config.group_norm_weight, backend=backend, device="meta"), converted


def _block(values: dict[str, Value], config: Any, backend: str) -> tuple[SLSTMBlock, dict[str, Value]]:
    layer, weights = _layer(values, config.slstm, backend, "xlstm.")
    converted = {f"layer.{name}": value for name, value in weights.items()}
    H, ffn = layer.slstm_cell.hidden_size, config.feedforward
    converted["norm_weight"] = _take(values, "xlstm_norm.weight", {"H": H}, plus=1)
    if ffn is None:
        return SLSTMBlock(layer, None, device="meta"), converted
    converted["ffn_norm_weight"] = _take(values, "ffn_norm.weight", {"H": H}, plus=1)
    for name in ("proj_up", "proj_down"):
        for part in ("weight", "bias")[:2 if ffn.bias else 1]:
            converted[f"{name}.{part}"] = _take(values, f"ffn.{name}.{part}")
    width = converted["proj_down.weight"][0].shape[-1]
    checks.shape("ffn.proj_up.weight", converted["proj_up.weight"][0], {"2*width": 2 * width, "H": H})
    return SLSTMBlock(layer, width, ffn_bias=ffn.bias, ffn_dropout=ffn.dropout, act_fn=ffn.act_fn,
                      device="meta"), converted
