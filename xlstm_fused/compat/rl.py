"""torchrl's ``LSTMModule`` on our kernels: the whole rollout of all environments in one call, episodes and all.

Needs torchrl and tensordict, which :mod:`xlstm_fused` does not install.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import dispatch
from torch import nn
from torchrl.modules import LSTMModule

from ..convert import from_lstm
from ..module import FusedxLSTM


class FusedLSTMModule(LSTMModule):
    """``torchrl.modules.LSTMModule`` with a :class:`~xlstm_fused.FusedxLSTM` inside.

    Keys, shapes and values are those of ``LSTMModule(recurrent_backend="pad")``: in recurrent mode each trajectory
    starts from the hidden state stored at its first step, and the hidden states that come out are those after the
    last step of each trajectory, zero elsewhere. Instead of cutting the batch at ``is_init``, padding, packing and
    undoing that, trajectories are read where they lie. So hidden states are right for every trajectory, and there is
    no padding.

    Args:
        lstm: an ``nn.LSTM``, which is copied, or a ``FusedxLSTM`` of cell "lstm", which is used; ``batch_first=True``.
            None to make one from ``options``.
        in_key, in_keys, out_key, out_keys, default_recurrent_mode: as in ``LSTMModule``.
        options: arguments of ``FusedxLSTM`` without ``batch_first``: input_size, hidden_size, num_layers, ...

    Raises:
        TypeError, ValueError: ``lstm`` is something else, or given beside ``options``; or as ``LSTMModule`` raises.
    """

    def __init__(self, lstm: nn.LSTM | FusedxLSTM | None = None, *, in_key: str | None = None,
                 in_keys: Sequence[Any] | None = None, out_key: str | None = None,
                 out_keys: Sequence[Any] | None = None, default_recurrent_mode: bool | None = None,
                 **options: Any) -> None:
        if lstm is not None and options:
            raise ValueError(f"lstm: expected None beside options of a new one ({', '.join(options)}), got a "
                             f"{type(lstm).__name__}")
        if lstm is None:
            lstm = FusedxLSTM(batch_first=True, **options)
        elif isinstance(lstm, nn.LSTM):
            lstm = from_lstm(lstm)
        if not isinstance(lstm, FusedxLSTM):
            raise TypeError(f"lstm: expected an nn.LSTM, a FusedxLSTM or None, got {type(lstm).__name__}")
        if lstm.cell != "lstm":
            raise ValueError(f"lstm: expected the cell 'lstm', since LSTMModule carries two states, got {lstm.cell!r}")
        super().__init__(in_key=in_key, in_keys=in_keys, out_key=out_key, out_keys=out_keys, lstm=lstm,
                         default_recurrent_mode=default_recurrent_mode)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """As ``LSTMModule.forward``: one step, or in recurrent mode (.., T) steps."""
        if not self.recurrent_mode:
            return super().forward(tensordict)
        if tensordict.ndim == 0:
            raise ValueError("tensordict: expected a batch size that ends with time in recurrent mode, got none")
        *batch, T = tensordict.shape
        P = tensordict.numel()
        value = tensordict.get(self.in_keys[0]).reshape(P, -1)
        first = tensordict.get("is_init").reshape(-1, T).clone()
        first[:, 0] = True
        starts = first.flatten().nonzero().squeeze(-1)
        ends = torch.cat((starts[1:], starts.new_tensor([P])))
        hidden = [tensordict.get(key, None) for key in self.in_keys[1:3]]
        if (hidden[0] is None) != (hidden[1] is None):
            raise ValueError(f"tensordict: expected both or none of {self.in_keys[1:3]}, got one")
        hx = None if hidden[0] is None else tuple(
            state.reshape(P, *state.shape[-2:])[starts].transpose(0, 1) for state in hidden)
        output, final = self.lstm(value, hx, cu_seqlens=torch.cat((starts.new_zeros(1), ends)))
        tensordict.set(self.out_keys[0], output.view(*batch, T, -1))
        for key, state in zip(self.out_keys[1:], final):
            state = state.transpose(0, 1)
            every = state.new_zeros(P, *state.shape[1:]).index_copy(0, ends - 1, state)
            tensordict.set(key, every.view(*batch, T, *state.shape[1:]))
        return tensordict
