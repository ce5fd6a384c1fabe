"""What a layout tells the backends of lengths that can be read, and of lengths that only the data's device knows."""

import pytest
import torch
from torch import nn

from xlstm_fused import FusedxLSTM
from xlstm_fused.layout import Layout

# Stands for a GPU: tensors there have no values, so that nothing can read them.
ELSEWHERE = torch.device("meta")


@pytest.mark.parametrize("given", (list, torch.tensor))
def test_cu_seqlens_on_the_host_tell_the_longest_length(given):
    layout = Layout.of(torch.empty(9, 2, device=ELSEWHERE), False, cu_seqlens=given([0, 4, 4, 9]))
    assert (layout.rows.T, layout.rows.P) == (5, 9)
    assert layout.rows.length.device == layout.rows.batch_offset.device == ELSEWHERE


def test_cu_seqlens_on_the_device_are_not_read():
    cu_seqlens = torch.tensor([0, 4, 4, 9]).to(ELSEWHERE)
    assert Layout.of(torch.empty(9, 2, device=ELSEWHERE), False, cu_seqlens=cu_seqlens).rows.T == 9


@pytest.mark.parametrize("batch_first", (False, True))
def test_lengths_on_the_host_leave_padding_out_on_any_device(batch_first):
    data = torch.empty(3, 7, 2, device=ELSEWHERE) if batch_first else torch.empty(7, 3, 2, device=ELSEWHERE)
    layout = Layout.of(data, batch_first, lengths=[2, 0, 5])
    assert (layout.rows.T, layout.rows.P, layout.rows.has_padding) == (5, 7, False)
    assert layout.index.device == layout.rows.length.device == layout.rows.batch_offset.device == ELSEWHERE
    assert layout.to_rows(data).shape == (7, 2)


def test_lengths_on_the_device_are_not_read():
    layout = Layout.of(torch.empty(7, 3, 2, device=ELSEWHERE), False, lengths=torch.tensor([2, 0, 5]).to(ELSEWHERE))
    assert (layout.rows.T, layout.rows.P, layout.rows.has_padding) == (7, 21, True)


@pytest.mark.parametrize("batch_first", (False, True))
def test_dropout_is_that_of_nn_lstm_where_every_sequence_is_shorter_than_the_data(batch_first):
    torch.manual_seed(1)
    theirs = nn.LSTM(3, 4, 2, dropout=0.5, batch_first=batch_first)
    ours = FusedxLSTM(3, 4, 2, dropout=0.5, batch_first=batch_first)
    ours.load_state_dict(theirs.state_dict())
    data, lengths = torch.randn(2, 6, 3) if batch_first else torch.randn(6, 2, 3), torch.tensor([3, 2])
    torch.manual_seed(2)
    expected, _ = theirs(data)
    torch.manual_seed(2)
    output, _ = ours(data, lengths=lengths)
    valid = torch.arange(6)[:, None] < lengths
    torch.testing.assert_close(output, expected * (valid.t() if batch_first else valid)[..., None])
