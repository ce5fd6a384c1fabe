"""The sLSTM cell, layer and block of the xlstm package, whole sequences through one call of our recurrence.

Made from the package's modules or state dicts by :func:`xlstm_fused.convert.from_xlstm`. The modules take and return
what the package's do, so each can take the place of its counterpart inside a model.

Source: Beck et al., "xLSTM: Extended Long Short-Term Memory", arXiv 2405.04517, section 2.2 and figure 10, as the
xlstm package 2.0.6 implements them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from ..cells import CELLS
from ..dtypes import autocast_dtype
from ..functional import recurrence

GATES = 4
EPS = 1e-5
"""What the package adds to variances; it has no option for it."""
INPUT_SHAPES = ("BSGNH", "SBGNH")
OUTPUT_SHAPES = ("BNSH", "SBH", "BSH", "SBNH")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "relu": F.relu, "relu^2": lambda x: F.relu(x).square(), "sigmoid": torch.sigmoid, "swish": F.silu,
    "selu": F.selu}

Device: TypeAlias = "torch.device | str | int | None"
ConvState: TypeAlias = "Tensor | tuple[Tensor] | None"


def cell_weights(kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The package's recurrent kernel and bias as ours, ``(weight_hh (4*H, D), bias (4*H,))``; differentiable.

    Args:
        kernel: ``_recurrent_kernel_``, (N, 4*D, D) as backend="vanilla" stores it, rows [gate][unit out]; or
            (N, D, 4*D) as backend="cuda" does, columns [gate][unit out]. The shape tells which.
        bias: ``_bias_``, (4*H,), ordered [gate][head][unit] beside the first and [head][gate][unit] beside the second.

    Raises:
        ValueError: the shapes are those of neither.
    """
    N, rows, columns = kernel.shape if kernel.dim() == 3 else (0, 0, 0)
    if rows == GATES * columns and N:
        D = columns
        weight_hh = kernel.view(N, GATES, D, D).transpose(0, 1)
    elif columns == GATES * rows and N:
        D = rows
        weight_hh = kernel.view(N, D, GATES, D).permute(2, 0, 3, 1)
    else:
        raise ValueError("_recurrent_kernel_: expected shape (N, 4*D, D) (backend vanilla) or (N, D, 4*D) (backend "
                         f"cuda), got {tuple(kernel.shape)}")
    checks.shape("_bias_", bias, {"4*N*D": GATES * N * D})
    if rows == D:
        bias = bias.view(N, GATES, D).transpose(0, 1).reshape(-1)
    return weight_hh.reshape(-1, D), bias


def run(input: Tensor, state: Tensor | None, weight_hh: Tensor, bias: Tensor, *, cell: str, batch_first: bool,
        backend: str = "auto") -> tuple[Tensor, Tensor]:
    """``(output like input with H features, last state (S, B, H))``; weights are cast to the dtype of ``input``.

    input (B, T, 4*H) or (T, B, 4*H), without its bias, cast as autocast would; state (S, B, H), zeros if None. The
    returned state has the dtype in which kernels keep ``c``, ``n`` and ``m``, so that nothing is lost where a sequence
    is cut.
    """
    input = input.to(autocast_dtype(input))
    initial = None
    if state is not None:
        h, *others = state.unbind(0)
        initial = h.to(input.dtype), *others
    H, D = input.shape[-1] // GATES, weight_hh.shape[1]
    output, last = recurrence(input + bias.to(input.dtype), weight_hh.to(input.dtype), initial, cell=cell,
                              num_heads=H // D, batch_first=batch_first, backend=backend)
    return output, torch.stack([value.to(last[-1].dtype) for value in last])


def arranged(output: Tensor, num_heads: int, batch_first: bool, output_shape: str) -> Tensor:
    """(B, S, H) or (S, B, H) in the order that the letters of ``output_shape`` give, heads apart if it has an N."""
    letters = "BSNH" if batch_first else "SBNH"
    wanted = output_shape if "N" in output_shape else output_shape.replace("H", "NH")
    output = output.unflatten(-1, (num_heads, -1)).permute([letters.index(letter) for letter in wanted])
    return output if wanted == output_shape else output.flatten(-2)


class SLSTMCell(nn.Module):
    """The package's ``sLSTMCell``: the recurrence and its bias, from gates that are already projected.

    Args:
        hidden_size, num_heads: H and N, N a divisor of H; D = H / N.
        cell: "slstm", or "lstm" (``function`` in the package's config).
        input_shape, output_shape: the package's letters; see :meth:`forward`.
        backend: as in :func:`xlstm_fused.recurrence`.

    Parameters: ``weight_hh`` (4*H, D) and ``bias`` (4*H,), rows [gate][head][unit], gates i, f, z, o.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, cell: str = "slstm", input_shape: str = "BSGNH",
                 output_shape: str = "BNSH", backend: str = "auto", device: Device = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__()
        checks.cell_name(cell, ("lstm", "slstm"))
        checks.heads(num_heads, hidden_size)
        checks.backend_name(backend)
        for name, value, allowed in (("input_shape", input_shape, INPUT_SHAPES),
                                     ("output_shape", output_shape, OUTPUT_SHAPES)):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, got {value!r}")
        self.hidden_size, self.num_heads, self.cell, self.backend = hidden_size, num_heads, cell, backend
        self.input_shape, self.output_shape = input_shape, output_shape
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight_hh = nn.Parameter(torch.empty(GATES * hidden_size, hidden_size // num_heads, **options))
        self.bias = nn.Parameter(torch.empty(GATES * hidden_size, **options))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(H), as nn.LSTM; the package has several schemes, of which none is copied here."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -self.hidden_size**-0.5, self.hidden_size**-0.5)

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, num_heads={self.num_heads}, cell={self.cell}"

    def forward(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run a sequence.

        Args:
            input: (B, S, 4*H) if ``input_shape="BSGNH"``, (S, B, 4*H) if "SBGNH", S steps; features ordered
                [gate][head][unit]. float32, float64, bfloat16 or float16; parameters are cast to that.
            state: (4, B, H), or (2, B, H) for ``cell="lstm"``; zeros if None.

        Returns:
            ``(output, state)``: output ordered by ``output_shape``, (B, N, S, D), (S, B, H), (B, S, H) or (S, B, N, D);
            the last state, float32 (float64 for float64 input) where the package's has the dtype of the input.

        Raises:
            TypeError, ValueError: an argument has a wrong type, dtype or shape; the message names it.
        """
        checks.tensor("input", input, self.weight_hh.device)
        if input.dim() != 3 or input.shape[-1] != GATES * self.hidden_size:
            raise ValueError(f"input: expected 3 dimensions, the last {GATES * self.hidden_size}, "
                             f"got shape {tuple(input.shape)}")
        batch_first = self.input_shape == "BSGNH"
        if state is not None:
            checks.tensor("state", state, input.device)
            checks.shape("state", state, {"S": len(CELLS[self.cell].states), "B": input.shape[1 - batch_first],
                                          "H": self.hidden_size})
        output, state = run(input, state, self.weight_hh, self.bias, cell=self.cell, batch_first=batch_first,
                            backend=self.backend)
        return arranged(output, self.num_heads, batch_first, self.output_shape), state


class SLSTMLayer(nn.Module):
    """The package's ``sLSTMLayer``: causal convolution and SiLU before i and f, gates by head, sLSTM, group norm.

    Args:
        embedding_dim, num_heads: H and N.
        conv1d_kernel_size: steps that a depthwise convolution sees; 0 for none.
        dropout: of the cell's output, before the norm.
        group_norm_weight: whether the norm over each head has a gain.
        cell, backend: as in :class:`SLSTMCell`.

    Parameters: ``weight_ih`` (4, N, D, D), gates i, f, z, o, each from a head to the same head; ``slstm_cell``;
    ``norm_weight`` (H,), the gain itself, where the package stores the gain minus 1; ``conv``, an nn.Conv1d.
    """

    def __init__(self, embedding_dim: int, num_heads: int, *, conv1d_kernel_size: int = 4, dropout: float = 0.0,
                 group_norm_weight: bool = True, cell: str = "slstm", backend: str = "auto", device: Device = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.slstm_cell = SLSTMCell(embedding_dim, num_heads, cell=cell, output_shape="BSH", backend=backend, **options)
        D = embedding_dim // num_heads
        self.weight_ih = nn.Parameter(torch.empty(GATES, num_heads, D, D, **options))
        self.conv = nn.Conv1d(embedding_dim, embedding_dim, conv1d_kernel_size, groups=embedding_dim,
                              **options) if conv1d_kernel_size else None
        self.norm_weight = nn.Parameter(torch.ones(embedding_dim, **options)) if group_norm_weight else None
        self.dropout = nn.Dropout(dropout)
        nn.init.uniform_(self.weight_ih, -D**-0.5, D**-0.5)

    def forward(self, x: Tensor, conv_state: ConvState = None, slstm_state: Tensor | None = None,
                return_last_state: bool = False, **_: Any) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Run a sequence.

        Args:
            x: (B, T, H).
            conv_state: the inputs of the steps before, (B, conv1d_kernel_size - 1, H); the package's forms, with
                fewer steps, or with one more inside a tuple, are read too. Zeros if None.
            slstm_state: (4, B, H); zeros if None.
            return_last_state: also return both states after the last step.

        Returns:
            output (B, T, H), or ``(output, {"conv_state": .., "slstm_state": ..})``. Further keyword arguments are
            ignored, as by the package, whose blocks hand theirs down.
        """
        mixed = x
        if self.conv is not None:
            history = self._history(x, conv_state, self.conv.kernel_size[0] - 1)
            seen = torch.cat((history, x), 1)
            conv_state = seen[:, x.shape[1]:]
            mixed = F.silu(self.conv(seen.transpose(1, 2)).transpose(1, 2))
        N = self.slstm_cell.num_heads
        wx = torch.cat([torch.einsum("bthd,ghod->btgho", value.unflatten(-1, (N, -1)), weight)
                        for value, weight in zip((mixed, x), self.weight_ih.split(2))], 2).flatten(2)
        y, slstm_state = self.slstm_cell(wx, slstm_state)
        y = self.dropout(y)
        output = F.group_norm(y.flatten(0, 1), N, self.norm_weight, eps=EPS).view(y.shape)
        return (output, {"conv_state": conv_state, "slstm_state": slstm_state}) if return_last_state else output

    def step(self, x: Tensor, conv_state: ConvState = None,
             slstm_state: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        """:meth:`forward` of one step, x (B, 1, H), that returns the states too."""
        result: tuple[Tensor, dict[str, Any]] = self(x, conv_state, slstm_state, return_last_state=True)
        return result

    @staticmethod
    def _history(x: Tensor, conv_state: ConvState, width: int) -> Tensor:
        """The ``width`` steps before ``x`` that the convolution sees, (B, width, H)."""
        if isinstance(conv_state, tuple):
            conv_state, = conv_state
        if conv_state is None:
            conv_state = x[:, :0]
        return F.pad(conv_state[:, max(conv_state.shape[1] - width, 0):],
                     (0, 0, max(width - conv_state.shape[1], 0), 0)).to(x.dtype)


class SLSTMBlock(nn.Module):
    """The package's ``sLSTMBlock``: ``x + layer(norm(x))``, then ``x + feedforward(norm(x))``.

    Args:
        layer: the :class:`SLSTMLayer`; F = its embedding_dim.
        ffn_dim: width of the gated feedforward; None for a block without one.
        ffn_bias, ffn_dropout, act_fn: its biases, dropout, and the name of its activation, a key of ``ACTIVATIONS``.

    Parameters: ``norm_weight`` and ``ffn_norm_weight`` (H,), gains, where the package stores them minus 1;
    ``proj_up`` and ``proj_down``, nn.Linear.
    """

    def __init__(self, layer: SLSTMLayer, ffn_dim: int | None, *, ffn_bias: bool = False, ffn_dropout: float = 0.0,
                 act_fn: str = "gelu", device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if act_fn not in ACTIVATIONS:
            raise ValueError(f"act_fn: expected one of {tuple(ACTIVATIONS)}, got {act_fn!r}")
        H: int = layer.slstm_cell.hidden_size
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layer, self.act_fn = layer, act_fn
        self.norm_weight = nn.Parameter(torch.ones(H, **options))
        self.proj_up = None
        if ffn_dim is not None:
            self.ffn_norm_weight = nn.Parameter(torch.ones(H, **options))
            self.proj_up = nn.Linear(H, 2 * ffn_dim, ffn_bias, **options)
            self.proj_down = nn.Linear(ffn_dim, H, ffn_bias, **options)
            self.dropout = nn.Dropout(ffn_dropout)

    def forward(self, x: Tensor, return_last_state: bool = False,
                **states: Any) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """x (B, T, H) to the same; ``states`` and ``return_last_state`` as in :meth:`SLSTMLayer.forward`."""
        normed = F.layer_norm(x, x.shape[-1:], self.norm_weight, eps=EPS)
        y, states = self.layer(normed, return_last_state=True, **states)
        x = x + y
        if self.proj_up is not None:
            normed = F.layer_norm(x, x.shape[-1:], self.ffn_norm_weight, eps=EPS)
            gate, up = self.proj_up(normed).chunk(2, -1)
            x = x + self.dropout(self.proj_down(ACTIVATIONS[self.act_fn](gate) * up))
        return (x, states) if return_last_state else x

    def step(self, x: Tensor, **states: Any) -> tuple[Tensor, dict[str, Any]]:
        """:meth:`forward` of one step, x (B, 1, H), that returns the states too."""
        result: tuple[Tensor, dict[str, Any]] = self(x, return_last_state=True, **states)
        return result
