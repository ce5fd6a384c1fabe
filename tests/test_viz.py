import pytest
import torch

from xlstm_fused import FusedxLSTM, viz


@pytest.mark.parametrize("batch_first", [False, True])
def test_panels_show_the_traced_values(batch_first):
    layer = FusedxLSTM(3, 4, num_layers=2, batch_first=batch_first)
    trace = layer(torch.randn(5, 6, 3), trace=True)[2]
    for figure, tensors in ((viz.gates(trace, batch=1, layer=0, batch_first=batch_first), trace[0].gates),
                            (viz.states(trace, batch=1, layer=0, batch_first=batch_first), trace[0].states)):
        panels = [axes for axes in figure.axes if axes.get_title()]
        assert len(panels) == len(tensors)
        for axes, tensor in zip(panels, tensors.values()):
            expected = (tensor[1] if batch_first else tensor[:, 1]).t()
            shown = torch.tensor(axes.images[0].get_array().tolist())
            torch.testing.assert_close(shown, expected.detach())
            assert axes.get_xlabel() == "step"


def test_wrong_layer_and_batch_are_named():
    trace = FusedxLSTM(3, 4)(torch.randn(5, 2, 3), trace=True)[2]
    with pytest.raises(IndexError, match="layer: expected an index into 1 layers, got 1"):
        viz.gates(trace, layer=1)
    with pytest.raises(IndexError, match="batch: expected an index into 2 sequences, got 2"):
        viz.states(trace, batch=2)
