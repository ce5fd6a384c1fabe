"""Every mistake gets one clear error at the Python boundary: what is wrong, what was expected, what came.

One line per mistake. A message is written out in full; ``...`` stands for any text.
"""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from xlstm_fused import FusedxLSTM, FusedxLSTMCell, recurrence

T, B, I, H = 6, 2, 3, 4
X, WX, R, RESET = torch.zeros(T, B, I), torch.zeros(T, B, 4 * H), torch.zeros(4 * H, H), torch.zeros(T, B)
ROWS, ONE, STEP = X[:, 0], WX[:, 0], X[0]
PACKED, UNSORTED = (pack_padded_sequence(X, lengths, enforce_sorted=False) for lengths in ([6, 4], [4, 6]))
FLAT = PACKED.data
PER_STEP = (T, B, 1, H)
layer, cell = partial(FusedxLSTM, I, H), partial(FusedxLSTMCell, I, H)


def states(*shape, count=2, **options):
    return (torch.zeros(shape, **options),) * count


def with_parameter(module, name, **options):
    setattr(module, name, nn.Parameter(getattr(module, name).detach().to(**options)))
    return module


HEADS = "num_heads: expected a positive divisor of hidden_size = 4, got "
HEADS_TYPE = "num_heads: expected an int, got "
CELL, BACKEND = "cell: expected one of ('lstm', 'slstm'...), got ", "backend: expected 'auto' or one of (...), got "
REFUSAL = "backend='{}' cannot run cell='lstm' in torch.float32 on a {} device: ..."
PAIR = "expected a tuple of 2 tensors (h, c) for cell='lstm', got "
QUADRUPLE = "expected a tuple of 4 tensors (h, c, n, m) for cell='slstm', got "
ALL_DTYPES = "expected torch.float32 or torch.float64 or torch.bfloat16 or torch.float16, got "
BATCH_SIZES = "input.batch_sizes: expected positive values that never increase and add up to the number of rows, "
BESIDE_PACKED = "expected None beside a PackedSequence, which carries its own lengths"
EITHER = "reset_state['h']: expected shape (L*K, B, H) = (1, 2, 4) or (T, B, L*K, H) = (6, 2, 1, 4), got "
H_SHAPE = "hx['h']: expected shape (L*K, B, H) = ({}, 2, 4), got "
H_DTYPE = "hx['h']: expected torch.float32, got torch."
H_DEVICE = "hx['h']: expected a tensor on cpu, got one on meta"
HIDDEN = "Expected hidden[0] size ({}, 2, 4), got [{}, {}, 4]"
BESIDE_CU_SEQLENS = "lengths: expected None beside cu_seqlens, which says the same, got list"
TWO_DIMENSIONS = "cu_seqlens: expected an input of 2 dimensions (rows, features), got 3"
ENDS = "cu_seqlens: expected 0 first and the number of rows, 6, last, got {} and {}"
DEVICES = "Input and {0} tensors are not at the same device, found input tensor at {1} and {0} tensor at {2}"
DTYPES = "RNN input dtype (torch.{}) does not match weight dtype (torch.float32). Convert input: ..."
EMPTY = "Expected sequence length to be larger than 0 in RNN"
HIDDEN_DIMENSIONS = "For {}-D input, hx and cx should also be {}-D but got ({}-D, {}-D) tensors"
NO_RESET = "reset_state: expected None without reset, got tuple"

CONSTRUCTORS = [
    (lambda: layer(cell="elman"), ValueError, CELL + "'elman'"),
    (lambda: layer(cell=None), ValueError, CELL + "None"),
    (lambda: layer(cell=["lstm"]), ValueError, CELL + "['lstm']"),
    (lambda: layer(backend="tpu"), ValueError, BACKEND + "'tpu'"),
    (lambda: layer(backend=None), ValueError, BACKEND + "None"),
    (lambda: layer(num_heads=3), ValueError, HEADS + "3"),
    (lambda: layer(num_heads=0), ValueError, HEADS + "0"),
    (lambda: layer(num_heads=-2), ValueError, HEADS + "-2"),
    (lambda: layer(num_heads=2.0), TypeError, HEADS_TYPE + "float"),
    (lambda: layer(num_heads=True), TypeError, HEADS_TYPE + "bool"),
    (lambda: layer(num_heads="2"), TypeError, HEADS_TYPE + "str"),
    (lambda: layer(num_heads=None), TypeError, HEADS_TYPE + "NoneType"),
    (lambda: layer(num_heads=2, proj_size=2), ValueError, "proj_size: expected 0 with num_heads = 2, ..., got 2"),
    (lambda: layer(residual=1), TypeError, "residual: expected a bool, got int"),
    (lambda: layer(layer_norm="yes"), TypeError, "layer_norm: expected a bool, got str"),
    (lambda: layer(recurrent_dropout=1.5), ValueError, "recurrent_dropout: expected a probability in [0, 1], got 1.5"),
    (lambda: layer(recurrent_dropout="0.5"), TypeError, "recurrent_dropout: expected a number, got str"),
    (lambda: layer(recurrent_dropout=0.5, proj_size=2), ValueError,
     "recurrent_dropout: not supported with proj_size = 2, got 0.5"),
    (lambda: layer(forget_bias="1"), TypeError, "forget_bias: expected a number, got str"),
    (lambda: layer(forget_bias=1.0, bias=False), ValueError, "forget_bias: expected None with bias=False, got 1.0"),
    (lambda: layer(checkpoint_every=0), ValueError, "checkpoint_every: expected at least 1, got 0"),
    (lambda: layer(checkpoint_every=2.0), TypeError, "checkpoint_every: expected an int or None, got float"),
    (lambda: layer(recurrent_dtype=torch.float16), ValueError,
     "recurrent_dtype: expected None or torch.bfloat16, got torch.float16"),
    (lambda: layer(recurrent_dtype="bfloat16"), ValueError,
     "recurrent_dtype: expected None or torch.bfloat16, got bfloat16"),
    (lambda: layer(checkpoint_every=2, proj_size=2), ValueError,
     "checkpoint_every: not supported with proj_size = 2, got 2"),
    (lambda: cell(cell="elman"), ValueError, CELL + "'elman'"),
    (lambda: cell(cell=["lstm"]), ValueError, CELL + "['lstm']"),
    (lambda: cell(num_heads=3), ValueError, HEADS + "3"),
    (lambda: cell(num_heads=2.0), TypeError, HEADS_TYPE + "float"),
]

LAYER = [
    # The input.
    (lambda: layer()([1.0]), TypeError, "input: expected a Tensor, got list"),
    (lambda: layer()(None), TypeError, "input: expected a Tensor, got NoneType"),
    (lambda: layer()(X.numpy()), TypeError, "input: expected a Tensor, got ndarray"),
    (lambda: layer(dtype=torch.complex64)(X + 0j), TypeError, "input: " + ALL_DTYPES + "torch.complex64"),
    (lambda: layer(backend="triton")(X), RuntimeError, REFUSAL.format("triton", "cpu")),
    (lambda: layer(device="meta", backend="cpu")(X.to("meta")), RuntimeError, REFUSAL.format("cpu", "meta")),
    (lambda: with_parameter(layer(), "weight_hh_l0", dtype=torch.float64)(X), TypeError,
     "weight_hh_l0: expected torch.float32, got torch.float64"),
    (lambda: with_parameter(layer(num_layers=2), "bias_ih_l1", dtype=torch.bfloat16)(X), TypeError,
     "bias_ih_l1: expected torch.float32, got torch.bfloat16"),
    # A PackedSequence. nn.LSTM does not check one.
    (lambda: FusedxLSTM(5, H)(PACKED), RuntimeError, "input.size(-1) must be equal to input_size. Expected 5, got 3"),
    (lambda: layer()(PACKED.double()), ValueError, DTYPES.format("float64")),
    (lambda: layer()(PackedSequence(X, torch.tensor([2] * 3))), ValueError,
     "input.data: expected 2 dimensions (rows, features), got 3"),
    (lambda: layer()(PackedSequence(FLAT[1:], PACKED.batch_sizes)), ValueError,
     BATCH_SIZES + "9, got [2, 2, 2, 2, 1, 1]"),
    (lambda: layer()(PackedSequence(FLAT, torch.tensor([2, 1]))), ValueError, BATCH_SIZES + "10, got [2, 1]"),
    (lambda: layer()(PackedSequence(FLAT, torch.tensor([4, 6]))), ValueError, BATCH_SIZES + "10, got [4, 6]"),
    (lambda: layer()(PackedSequence(FLAT, torch.tensor([10, 0]))), ValueError, BATCH_SIZES + "10, got [10, 0]"),
    (lambda: layer()(PackedSequence(FLAT[:0], torch.tensor([0])[:0])), ValueError, BATCH_SIZES + "0, got []"),
    (lambda: layer()(PackedSequence(FLAT, torch.tensor([10.0]))), TypeError,
     "input.batch_sizes: expected integers, got torch.float32"),
    # hx.
    (lambda: layer()(X, torch.zeros(1, B, H)), TypeError, "hx: " + PAIR + "Tensor"),
    (lambda: layer()(X, {"h": 0, "c": 0}), TypeError, "hx: " + PAIR + "dict"),
    (lambda: layer()(X, (None, None)), TypeError, "hx['h']: expected a Tensor, got NoneType"),
    (lambda: layer()(X, states(1, B, H, count=1)), ValueError, "hx: " + PAIR + "1 elements"),
    (lambda: layer()(X, (*states(1, B, H, count=1), 0)), TypeError, "hx['c']: expected a Tensor, got int"),
    (lambda: layer()(X, (*states(B, H, count=1), 0)), ValueError, H_SHAPE.format(1) + "(2, 4)"),
    (lambda: layer()(X, states(1, B, H, dtype=torch.float64)), TypeError, H_DTYPE + "float64"),
    (lambda: layer()(X, states(1, B, H, dtype=torch.int64)), TypeError, H_DTYPE + "int64"),
    (lambda: layer(dtype=torch.bfloat16)(X.bfloat16(), states(1, B, H)), TypeError,
     "hx['h']: expected torch.bfloat16, got torch.float32"),
    (lambda: layer(dtype=torch.bfloat16)(X.bfloat16(), (*states(1, B, H, count=1, dtype=torch.bfloat16),
                                                        torch.zeros(1, B, H, dtype=torch.float16))), TypeError,
     "hx['c']: expected torch.bfloat16 or torch.float32, got torch.float16"),
    (lambda: layer()(PACKED, states(1, 3, H)), RuntimeError, HIDDEN.format(1, 1, 3)),
    (lambda: layer()(UNSORTED, states(1, 3, H)), RuntimeError, HIDDEN.format(1, 1, 3)),
    (lambda: layer()(PACKED, states(B, H)), RuntimeError, "Expected hidden[0] size (1, 2, 4), got [2, 4]"),
    (lambda: layer()(ROWS, states(B, H), cu_seqlens=[0, 4, 6]), RuntimeError,
     "Expected hidden[0] size (1, 2, 4), got [2, 4]"),
    (lambda: layer(cell="slstm")(X, torch.zeros(4, 1, B, H)), TypeError, "hx: " + QUADRUPLE + "Tensor"),
    (lambda: layer(cell="slstm")(X, states(1, B, H)), ValueError, "hx: " + QUADRUPLE + "2 elements"),
    (lambda: layer(cell="slstm")(X, states(1, 3, H, count=4)), ValueError, H_SHAPE.format(1) + "(1, 3, 4)"),
    (lambda: layer(cell="slstm", bidirectional=True)(X, states(1, B, H, count=4)), ValueError,
     H_SHAPE.format(2) + "(1, 2, 4)"),
    (lambda: layer(cell="slstm", proj_size=2)(X, states(1, B, H, count=4)), ValueError,
     "hx['h']: expected shape (L*K, B, F) = (1, 2, 2), got (1, 2, 4)"),
    (lambda: layer(cell="slstm")(ROWS, states(1, 1, H, count=4)), ValueError,
     "hx['h']: expected shape (L*K, H) = (1, 4), got (1, 1, 4)"),
    (lambda: layer(cell="slstm")(X, (*states(1, B, H, count=3), torch.zeros(1, B, 5))), ValueError,
     "hx['m']: expected shape (L*K, B, H) = (1, 2, 4), got (1, 2, 5)"),
    (lambda: layer(cell="slstm")(X, states(1, B, H, count=4, device="meta")), RuntimeError, H_DEVICE),
    # lengths.
    (lambda: layer()(X, lengths=[3, -1]), ValueError, "lengths: expected values between 0 and T = 6, got [3, -1]"),
    (lambda: layer()(X, lengths=[7, 1]), ValueError, "lengths: expected values between 0 and T = 6, got [7, 1]"),
    (lambda: layer(batch_first=True)(X, lengths=[3] * 6), ValueError,
     "lengths: expected values between 0 and T = 2, got [3, 3, 3, 3, 3, 3]"),
    (lambda: layer()(X, lengths=[3]), ValueError, "lengths: expected one length for each of 2 sequences, got 1"),
    (lambda: layer()(ROWS, lengths=[3, 1]), ValueError, "lengths: expected one length for each of 1 sequences, got 2"),
    (lambda: layer()(X, lengths=6), ValueError, "lengths: expected 1 dimension, got 0"),
    (lambda: layer()(X, lengths=torch.tensor([[3, 1]])), ValueError, "lengths: expected 1 dimension, got 2"),
    (lambda: layer()(X, lengths=[3.0, 1.0]), TypeError, "lengths: expected integers, got torch.float32"),
    (lambda: layer()(X, lengths=torch.tensor([True, True])), TypeError, "lengths: expected integers, got torch.bool"),
    (lambda: layer()(X, lengths=["3", "1"]), TypeError,
     "lengths: expected a 1-D integer tensor or a list of ints, got ['3', '1']"),
    (lambda: layer()(X, lengths=torch.tensor([3, 1], device="meta")), RuntimeError,
     "lengths: expected a tensor on cpu, got one on meta"),
    (lambda: layer()(PACKED, lengths=[6, 4]), ValueError, "lengths: " + BESIDE_PACKED + ", got list"),
    # cu_seqlens.
    (lambda: layer()(ROWS, cu_seqlens=[0, 4, 2, 6]), ValueError,
     "cu_seqlens: expected values that never decrease, got [0, 4, 2, 6]"),
    (lambda: layer()(ROWS, cu_seqlens=[1, 6]), ValueError, ENDS.format(1, 6)),
    (lambda: layer()(ROWS, cu_seqlens=[0, 5]), ValueError, ENDS.format(0, 5)),
    (lambda: layer()(ROWS, cu_seqlens=[0]), ValueError, "cu_seqlens: expected at least 2 elements, got 1"),
    (lambda: layer()(ROWS, cu_seqlens=[0.0, 6.0]), TypeError, "cu_seqlens: expected integers, got torch.float32"),
    (lambda: layer()(ROWS, cu_seqlens=torch.tensor([False, True])), TypeError,
     "cu_seqlens: expected integers, got torch.bool"),
    (lambda: layer()(ROWS, cu_seqlens=[[0, 6]]), ValueError, "cu_seqlens: expected 1 dimension, got 2"),
    (lambda: layer()(ROWS, cu_seqlens=torch.tensor([0, 6], device="meta")), RuntimeError,
     "cu_seqlens: expected a tensor on cpu, got one on meta"),
    (lambda: layer()(ROWS, cu_seqlens=[0, 6], lengths=[6]), ValueError, BESIDE_CU_SEQLENS),
    (lambda: layer()(PACKED, cu_seqlens=[0, 10]), ValueError, "cu_seqlens: " + BESIDE_PACKED + ", got list"),
    (lambda: layer()(X, cu_seqlens=[0, 6]), ValueError, TWO_DIMENSIONS),
    (lambda: layer(batch_first=True)(X, cu_seqlens=[0, 6]), ValueError, TWO_DIMENSIONS),
    # reset.
    (lambda: layer()(X, reset=[0] * 6), TypeError, "reset: expected a Tensor, got list"),
    (lambda: layer()(X, reset=RESET[:, :1]), ValueError, "reset: expected shape (T, B) = (6, 2), got (6, 1)"),
    (lambda: layer(batch_first=True)(X, reset=RESET.t()), ValueError,
     "reset: expected shape (B, T) = (6, 2), got (2, 6)"),
    (lambda: layer()(ROWS, reset=RESET), ValueError, "reset: expected shape (T,) = (6,), got (6, 2)"),
    (lambda: layer()(ROWS, reset=RESET, cu_seqlens=[0, 6]), ValueError,
     "reset: expected shape (rows,) = (6,), got (6, 2)"),
    (lambda: layer()(X, reset=RESET + 0j), TypeError,
     "reset: expected bool, integer or floating values, got torch.complex64"),
    (lambda: layer()(X, reset=RESET.int() - 1), ValueError, "reset: expected only the values 0 and 1, got -1"),
    (lambda: layer()(X, reset=RESET + 0.5), ValueError, "reset: expected only the values 0 and 1, got 0.5"),
    (lambda: layer()(X, reset=RESET + float("nan")), ValueError, "reset: expected only the values 0 and 1, got nan"),
    (lambda: layer()(X, reset=RESET.to("meta")), RuntimeError, "reset: expected a tensor on cpu, got one on meta"),
    (lambda: layer()(PACKED, reset=PACKED), TypeError, "reset: expected a Tensor, got PackedSequence"),
    (lambda: layer()(PACKED, reset=RESET), ValueError, "reset: expected shape (rows,) = (10,), got (6, 2)"),
    # reset_state.
    (lambda: layer()(X, reset_state=states(1, B, H)), ValueError, NO_RESET),
    (lambda: layer()(X, reset=RESET, reset_state=torch.zeros(1, B, H)), TypeError, "reset_state: " + PAIR + "Tensor"),
    (lambda: layer()(X, reset=RESET, reset_state=states(1, B, H, count=4)), ValueError,
     "reset_state: " + PAIR + "4 elements"),
    (lambda: layer()(X, reset=RESET, reset_state=states(1, 3, H)), ValueError, EITHER + "(1, 3, 4)"),
    (lambda: layer()(X, reset=RESET, reset_state=states(5, B, 1, H)), ValueError, EITHER + "(5, 2, 1, 4)"),
    (lambda: layer()(X, reset=RESET, reset_state=(torch.zeros(PER_STEP), torch.zeros(1, B, H))), ValueError,
     "reset_state['c']: expected shape (T, B, L*K, H) = (6, 2, 1, 4), got (1, 2, 4)"),
    (lambda: layer()(X, reset=RESET, reset_state=(torch.zeros(1, B, H), torch.zeros(PER_STEP))), ValueError,
     "reset_state['c']: expected shape (L*K, B, H) = (1, 2, 4), got (6, 2, 1, 4)"),
    (lambda: layer(proj_size=2)(X, reset=RESET, reset_state=states(1, B, H)), ValueError, "reset_state['h']: expected "
     "shape (L*K, B, F) = (1, 2, 2) or (T, B, L*K, F) = (6, 2, 1, 2), got (1, 2, 4)"),
    (lambda: layer()(ROWS, reset=RESET[:, 0], reset_state=states(3, H)), ValueError,
     "reset_state['h']: expected shape (L*K, H) = (1, 4) or (T, L*K, H) = (6, 1, 4), got (3, 4)"),
    (lambda: layer()(X, reset=RESET, reset_state=states(1, B, H, dtype=torch.int64)), TypeError,
     "reset_state['h']: expected torch.float32, got torch.int64"),
    (lambda: layer()(X, reset=RESET, reset_state=states(1, B, H, device="meta")), RuntimeError,
     "reset_state['h']: expected a tensor on cpu, got one on meta"),
]

CELL_MODULE = [
    (lambda: cell()(STEP.numpy()), TypeError, "input: expected a Tensor, got ndarray"),
    (lambda: cell()(PACKED), TypeError, "input: expected a Tensor, got PackedSequence"),
    (lambda: cell()(STEP.long()), TypeError, "input: expected torch.float32, got torch.int64"),
    (lambda: cell()(STEP.double()), TypeError, "input: expected torch.float32, got torch.float64"),
    (lambda: cell(dtype=torch.complex64)(STEP + 0j), TypeError, "input: " + ALL_DTYPES + "torch.complex64"),
    (lambda: cell()(STEP.to("meta")), RuntimeError, "input: expected a tensor on cpu, got one on meta"),
    (lambda: with_parameter(cell(), "bias_hh", dtype=torch.float64)(STEP), TypeError,
     "bias_hh: expected torch.float32, got torch.float64"),
    (lambda: with_parameter(cell(), "weight_hh", device="meta")(STEP), RuntimeError,
     "weight_hh: expected a tensor on cpu, got one on meta"),
    (lambda: cell()(STEP, torch.zeros(B, H)), TypeError, "hx: " + PAIR + "Tensor"),
    (lambda: cell()(STEP, (None, None)), TypeError, "hx['h']: expected a Tensor, got NoneType"),
    (lambda: cell()(STEP, states(H)), ValueError, "hx['h']: expected shape (B, H) = (2, 4), got (4,)"),
    (lambda: cell()(STEP[0], states(B, H)), ValueError, "hx['h']: expected shape (H,) = (4,), got (2, 4)"),
    (lambda: cell()(STEP, states(B, H, dtype=torch.float64)), TypeError, H_DTYPE + "float64"),
    (lambda: cell()(STEP, states(B, H, device="meta")), RuntimeError, H_DEVICE),
    (lambda: cell(cell="slstm")(STEP, states(B, H)), ValueError, "hx: " + QUADRUPLE + "2 elements"),
    (lambda: cell(cell="slstm")(STEP, states(3, H, count=4)), ValueError,
     "hx['h']: expected shape (B, H) = (2, 4), got (3, 4)"),
]

RECURRENCE = [
    (lambda: recurrence(WX.numpy(), R), TypeError, "wx: expected a Tensor, got ndarray"),
    (lambda: recurrence(PACKED, R), TypeError, "wx: expected a Tensor, got PackedSequence"),
    (lambda: recurrence(WX.long(), R.long()), TypeError, "wx: " + ALL_DTYPES + "torch.int64"),
    (lambda: recurrence(WX + 0j, R + 0j), TypeError, "wx: " + ALL_DTYPES + "torch.complex64"),
    (lambda: recurrence(WX[0, 0], R), ValueError, "wx: expected 2 or 3 dimensions, got 1"),
    (lambda: recurrence(WX[None], R), ValueError, "wx: expected 2 or 3 dimensions, got 4"),
    (lambda: recurrence(WX[..., :15], R), ValueError, "wx: expected a last dimension of 4 * H for cell='lstm', got 15"),
    (lambda: recurrence(WX[..., :0], R), ValueError, "wx: expected a last dimension of 4 * H for cell='lstm', got 0"),
    (lambda: recurrence(WX[:0], R), ValueError, "wx: expected at least one step, got shape (0, 2, 16)"),
    (lambda: recurrence(WX[:, :0], R, batch_first=True), ValueError,
     "wx: expected at least one step, got shape (6, 0, 16)"),
    (lambda: recurrence(ONE[:0], R, cu_seqlens=[0, 0]), ValueError,
     "wx: expected at least one step, got shape (0, 16)"),
    (lambda: recurrence(WX, R.numpy()), TypeError, "weight_hh: expected a Tensor, got ndarray"),
    (lambda: recurrence(WX, R.double()), TypeError, "weight_hh: expected torch.float32, got torch.float64"),
    (lambda: recurrence(WX, R.to("meta")), RuntimeError, "weight_hh: expected a tensor on cpu, got one on meta"),
    (lambda: recurrence(WX, R[:, :3]), ValueError,
     "weight_hh: expected shape (4*H, H/num_heads) = (16, 4), got (16, 3)"),
    (lambda: recurrence(WX, R, num_heads=2), ValueError,
     "weight_hh: expected shape (4*H, H/num_heads) = (16, 2), got (16, 4)"),
    (lambda: recurrence(WX, R, num_heads=3), ValueError, HEADS + "3"),
    (lambda: recurrence(WX, R, num_heads=2.0), TypeError, HEADS_TYPE + "float"),
    (lambda: recurrence(WX, R, cell="elman"), ValueError, CELL + "'elman'"),
    (lambda: recurrence(WX, R, cell=["lstm"]), ValueError, CELL + "['lstm']"),
    (lambda: recurrence(WX, R, backend="tpu"), ValueError, BACKEND + "'tpu'"),
    (lambda: recurrence(WX, R, backend="triton"), RuntimeError, REFUSAL.format("triton", "cpu")),
    (lambda: recurrence(WX, R, reverse="yes"), TypeError, "reverse: expected a bool, got str"),
    (lambda: recurrence(WX, R, batch_first=1), TypeError, "batch_first: expected a bool, got int"),
    (lambda: recurrence(WX, R, torch.zeros(B, H)), TypeError, "state: " + PAIR + "Tensor"),
    (lambda: recurrence(WX, R, states(B, H, count=4)), ValueError, "state: " + PAIR + "4 elements"),
    (lambda: recurrence(WX, R, states(B, H), cell="slstm"), ValueError, "state: " + QUADRUPLE + "2 elements"),
    (lambda: recurrence(WX, R, ["h", "c"]), TypeError, "state['h']: expected a Tensor, got str"),
    (lambda: recurrence(WX, R, states(3, H)), ValueError, "state['h']: expected shape (B, H) = (2, 4), got (3, 4)"),
    (lambda: recurrence(WX, R, states(1, B, H)), ValueError,
     "state['h']: expected shape (B, H) = (2, 4), got (1, 2, 4)"),
    (lambda: recurrence(ONE, R, states(1, H)), ValueError, "state['h']: expected shape (H,) = (4,), got (1, 4)"),
    (lambda: recurrence(WX, R, states(B, H, dtype=torch.float64)), TypeError,
     "state['h']: expected torch.float32, got torch.float64"),
    (lambda: recurrence(WX, R, states(B, H, device="meta")), RuntimeError,
     "state['h']: expected a tensor on cpu, got one on meta"),
    (lambda: recurrence(WX, R, lengths=[7, 1]), ValueError, "lengths: expected values between 0 and T = 6, got [7, 1]"),
    (lambda: recurrence(WX, R, lengths=[1, 2, 3]), ValueError,
     "lengths: expected one length for each of 2 sequences, got 3"),
    (lambda: recurrence(ONE, R, cu_seqlens=[0, 7]), ValueError, ENDS.format(0, 7)),
    (lambda: recurrence(WX, R, cu_seqlens=[0, 6], batch_first=True), ValueError, TWO_DIMENSIONS),
    (lambda: recurrence(ONE, R, cu_seqlens=[0, 6], lengths=[6]), ValueError, BESIDE_CU_SEQLENS),
    (lambda: recurrence(WX, R, reset=RESET.t()), ValueError, "reset: expected shape (T, B) = (6, 2), got (2, 6)"),
    (lambda: recurrence(WX, R, reset=RESET + 2), ValueError, "reset: expected only the values 0 and 1, got 2.0"),
    (lambda: recurrence(WX, R, reset_state=states(B, H)), ValueError, NO_RESET),
    (lambda: recurrence(WX, R, reset=RESET, reset_state=states(3, H)), ValueError,
     "reset_state['h']: expected shape (B, H) = (2, 4) or (T, B, H) = (6, 2, 4), got (3, 4)"),
    (lambda: recurrence(ONE, R, cu_seqlens=[0, 4, 6], reset=RESET[:, 0], reset_state=states(5, H)), ValueError,
     "reset_state['h']: expected shape (B, H) = (2, 4) or (rows, H) = (6, 4), got (5, 4)"),
    (lambda: recurrence(WX, R, reset=RESET, reset_state=(torch.zeros(T, B, H), torch.zeros(B, H))), ValueError,
     "reset_state['c']: expected shape (T, B, H) = (6, 2, 4), got (2, 4)"),
]

# Mistakes that nn.LSTM has words for: ours are the same. Each is made with either class.
AS_NN_LSTM = [
    (lambda LSTM: LSTM("3", H), TypeError, "input_size should be of type int, got: str"),
    (lambda LSTM: LSTM(I, 4.0), TypeError, "hidden_size should be of type int, got: float"),
    (lambda LSTM: LSTM(0, H), ValueError, "input_size must be greater than zero"),
    (lambda LSTM: LSTM(I, 0), ValueError, "hidden_size must be greater than zero"),
    (lambda LSTM: LSTM(I, H, 0), ValueError, "num_layers must be greater than zero"),
    (lambda LSTM: LSTM(I, H, 1, 1), TypeError, "bias should be of type bool, got: int"),
    (lambda LSTM: LSTM(I, H, batch_first=1), TypeError, "batch_first should be of type bool, got: int"),
    (lambda LSTM: LSTM(I, H, 2, dropout=1.5), ValueError, "dropout should be a number in range [0, 1] ..."),
    (lambda LSTM: LSTM(I, H, proj_size=-1), ValueError, "proj_size should be a positive integer or zero ..."),
    (lambda LSTM: LSTM(I, H, proj_size=H), ValueError, "proj_size has to be smaller than hidden_size"),
    (lambda LSTM: LSTM(I, H, dtype=torch.int32), RuntimeError, "Only Tensors of floating point ... dtype ..."),
    (lambda LSTM: LSTM(I, H)(X[None]), ValueError, "...LSTM: Expected input to be 2D or 3D, got 4D instead"),
    (lambda LSTM: LSTM(I, H)(X[0, 0]), ValueError, "...LSTM: Expected input to be 2D or 3D, got 1D instead"),
    (lambda LSTM: LSTM(5, H)(X), RuntimeError, "input.size(-1) must be equal to input_size. Expected 5, got 3"),
    (lambda LSTM: LSTM(5, H)(ROWS), RuntimeError, "input.size(-1) must be equal to input_size. Expected 5, got 3"),
    (lambda LSTM: LSTM(I, H)(X.double()), ValueError, DTYPES.format("float64")),
    (lambda LSTM: LSTM(I, H)(X.long()), ValueError, DTYPES.format("int64")),
    (lambda LSTM: LSTM(I, H)(X + 0j), ValueError, DTYPES.format("complex64")),
    (lambda LSTM: LSTM(I, H)(X.to("meta")), RuntimeError, DEVICES.format("parameter", "meta", "cpu")),
    (lambda LSTM: LSTM(I, H, device="meta")(X), RuntimeError, DEVICES.format("parameter", "cpu", "meta")),
    (lambda LSTM: with_parameter(LSTM(I, H), "weight_hh_l0", device="meta")(X), RuntimeError,
     DEVICES.format("parameter", "cpu", "meta")),
    (lambda LSTM: LSTM(I, H)(X[:0]), RuntimeError, EMPTY),
    (lambda LSTM: LSTM(I, H, batch_first=True)(X[:, :0]), RuntimeError, EMPTY),
    (lambda LSTM: LSTM(I, H)(ROWS[:0]), RuntimeError, EMPTY),
    (lambda LSTM: LSTM(I, H)(X, states(1, B, H, count=3)), RuntimeError, "lstm expects two hidden states"),
    (lambda LSTM: LSTM(I, H)(X, states(B, H)), RuntimeError, HIDDEN_DIMENSIONS.format("batched 3", 3, 2, 2)),
    (lambda LSTM: LSTM(I, H)(X, (torch.zeros(1, B, H), torch.zeros(H))), RuntimeError,
     HIDDEN_DIMENSIONS.format("batched 3", 3, 3, 1)),
    (lambda LSTM: LSTM(I, H)(ROWS, states(1, 1, H)), RuntimeError, HIDDEN_DIMENSIONS.format("unbatched 2", 2, 3, 3)),
    (lambda LSTM: LSTM(I, H)(X, states(1, 3, H)), RuntimeError, HIDDEN.format(1, 1, 3)),
    (lambda LSTM: LSTM(I, H, 2)(X, states(1, B, H)), RuntimeError, HIDDEN.format(2, 1, 2)),
    (lambda LSTM: LSTM(I, H, bidirectional=True)(X, states(1, B, H)), RuntimeError, HIDDEN.format(2, 1, 2)),
    (lambda LSTM: LSTM(I, H)(X, (torch.zeros(1, B, H), torch.zeros(1, B, 5))), RuntimeError,
     "Expected hidden[1] size (1, 2, 4), got [1, 2, 5]"),
    (lambda LSTM: LSTM(I, H)(ROWS, states(1, 5)), RuntimeError, "Expected hidden[0] size (1, 1, 4), got [1, 1, 5]"),
    (lambda LSTM: LSTM(I, H, proj_size=2)(X, states(1, B, H)), RuntimeError,
     "Expected hidden[0] size (1, 2, 2), got [1, 2, 4]"),
    (lambda LSTM: LSTM(I, H)(X, states(1, B, H, device="meta")), RuntimeError, DEVICES.format("hidden", "cpu", "meta")),
]

AS_NN_LSTMCELL = [
    (lambda LSTMCell: LSTMCell(I, 4.0), TypeError, "empty(): argument 'size' ... must be tuple of ints, ..."),
    (lambda LSTMCell: LSTMCell(I, "4"), TypeError, "empty(): argument 'size' ... must be tuple of ints, ..."),
    (lambda LSTMCell: LSTMCell(I, H)(X), ValueError, "...LSTMCell: Expected input to be 1D or 2D, got 3D instead"),
    (lambda LSTMCell: LSTMCell(5, H)(STEP), RuntimeError, "input has inconsistent input_size: got 3 expected 5"),
    (lambda LSTMCell: LSTMCell(I, H)(STEP, states(B, H, count=1)), RuntimeError, "lstm_cell expects two hidden states"),
    (lambda LSTMCell: LSTMCell(I, H)(STEP, states(B, H, count=3)), RuntimeError, "lstm_cell expects two hidden states"),
    (lambda LSTMCell: LSTMCell(I, H)(STEP, states(1, B, H)), ValueError,
     "...LSTMCell: Expected hx[0] to be 1D or 2D, got 3D instead"),
    (lambda LSTMCell: LSTMCell(I, H)(STEP, states(3, H)), RuntimeError,
     "Input batch size 2 doesn't match hidden0 batch size 3"),
    (lambda LSTMCell: LSTMCell(I, H)(STEP, (torch.zeros(B, H), torch.zeros(B, 5))), RuntimeError,
     "hidden1 has inconsistent hidden_size: got 5, expected 4"),
    (lambda LSTMCell: LSTMCell(I, H)(STEP[0], states(5)), RuntimeError,
     "hidden0 has inconsistent hidden_size: got 5, expected 4"),
]


def lines(*tables):
    return [pytest.param(*line, id=f"{line[1].__name__}: {line[2]}") for table in tables for line in table]


def error_of(mistake, *arguments):
    with pytest.raises(Exception) as caught:
        mistake(*arguments)
    return caught.value


def assert_is(error, kind, message):
    assert type(error) is kind, f"{type(error).__name__}: {error}"
    pattern = re.escape(message).replace(re.escape("..."), ".*")
    assert re.fullmatch(pattern, str(error), re.DOTALL), str(error)


@pytest.mark.parametrize("mistake, kind, message", lines(CONSTRUCTORS, LAYER, CELL_MODULE, RECURRENCE))
def test_error(mistake, kind, message):
    assert_is(error_of(mistake), kind, message)


@pytest.mark.parametrize("ours, theirs, mistake, kind, message", [
    pytest.param(ours, theirs, *line.values, id=line.id)
    for ours, theirs, table in ((FusedxLSTM, nn.LSTM, AS_NN_LSTM), (FusedxLSTMCell, nn.LSTMCell, AS_NN_LSTMCELL))
    for line in lines(table)])
def test_error_is_that_of_torch(ours, theirs, mistake, kind, message):
    error, expected = error_of(mistake, ours), error_of(mistake, theirs)
    assert_is(error, kind, message)
    assert type(error) is type(expected)
    assert str(error).replace(ours.__name__, theirs.__name__) == str(expected)


def test_values_on_a_device_are_not_read():
    """On ``meta``, whose values nothing can read, what is checked on the CPU by value passes: no check synchronises."""
    module, x = layer(device="meta"), X.to("meta")
    bad = torch.full((B,), -1, device="meta")
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            output, (h, c) = module(x, lengths=bad, reset=torch.full((T, B), 7, device="meta"))
            assert output.shape == (T, B, H) and h.shape == c.shape == (1, B, H)
            assert module(x[:, 0], cu_seqlens=bad)[0].shape == (T, H)


def test_lengths_on_the_cpu_are_checked_whatever_the_device():
    assert_is(error_of(lambda: layer(device="meta")(X.to("meta"), lengths=torch.tensor([7, 1]))), ValueError,
              "lengths: expected values between 0 and T = 6, got [7, 1]")
