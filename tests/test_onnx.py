"""torch.onnx.export: the LSTM operator, run by onnxruntime, against the module; what has no operator is refused."""

import numpy as np
import onnxruntime
import pytest
import torch
from tolerances import assert_close
from torch import nn

from xlstm_fused import FusedxLSTM, FusedxLSTMCell, onnx
from xlstm_fused.layout import Layout

I, H = 3, 4
DYNAMIC = torch.export.Dim.DYNAMIC

# Python's own copyreg, on behalf of what torch.onnx.export copies.
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")


def inputs(module, T, B, with_hx):
    K = 2 if module.bidirectional else 1
    x = torch.randn(*((B, T) if module.batch_first else (T, B)), I)
    return (x, tuple(torch.randn(module.num_layers * K, B, H) for _ in range(2))) if with_hx else (x,)


@pytest.mark.parametrize("num_layers, bidirectional, bias, batch_first, with_hx", (
    (1, False, True, False, False), (2, True, True, True, True), (1, False, False, True, False),
    (1, True, False, False, True)))
def test_the_operator_computes_what_the_module_does(num_layers, bidirectional, bias, batch_first, with_hx):
    module = FusedxLSTM(I, H, num_layers, bias, batch_first, 0.5 if num_layers > 1 else 0.0, bidirectional,
                        residual=True, layer_norm=True).eval()
    shapes = ({0: DYNAMIC, 1: DYNAMIC}, *([({1: DYNAMIC},) * 2] if with_hx else []))
    program = torch.onnx.export(module, inputs(module, 5, 3, with_hx), dynamic_shapes=shapes, dynamo=True,
                                verbose=False)
    operators = [node.op_type for node in program.model_proto.graph.node]
    assert operators.count("LSTM") == num_layers
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for T, B in ((5, 3), (8, 2), (1, 1)):
        x, *hx = inputs(module, T, B, with_hx)
        output, state = module(x, *hx)
        flat = [x, *(hx[0] if with_hx else ())]
        got = session.run(None, {given.name: np.asarray(value) for given, value in zip(session.get_inputs(), flat)})
        for value, want in zip(got, (output, *state), strict=True):
            assert_close(torch.from_numpy(value), want)


class _Ragged(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = FusedxLSTM(I, H)

    def forward(self, x):
        return self.layer(x, lengths=torch.tensor([5, 2]))


@pytest.mark.parametrize("module, reason", (
    (FusedxLSTM(I, H, cell="slstm"), "cell='slstm'"), (_Ragged(), "lengths, cu_seqlens or a PackedSequence"),
    (FusedxLSTMCell(I, H), "a recurrence by itself, as in FusedxLSTMCell")), ids=("slstm", "lengths", "cell module"))
def test_what_has_no_operator_is_refused(module, reason):
    x = torch.randn(2, I) if isinstance(module, FusedxLSTMCell) else torch.randn(5, 2, I)
    with pytest.raises(torch.onnx.OnnxExporterError, match=f"expected FusedxLSTM with cell='lstm'.*got {reason}"):
        torch.onnx.export(module.eval(), (x,), dynamo=True, verbose=False)


@pytest.mark.parametrize("options, reset, trace, reason", (
    ({"num_heads": 2}, None, False, "num_heads=2"), ({"proj_size": 2}, None, False, "proj_size=2"),
    ({"recurrent_dropout": 0.5}, None, False, "recurrent_dropout in training"),
    ({}, torch.zeros(5, 2), False, "reset"), ({}, None, True, "trace=True")))
def test_what_else_is_refused(options, reset, trace, reason):
    with pytest.raises(NotImplementedError, match=f"expected FusedxLSTM with cell='lstm'.*got {reason}"):
        onnx.check(FusedxLSTM(I, H, **options), Layout.of(torch.randn(5, 2, I), False), reset, trace)
