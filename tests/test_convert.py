"""Conversions against the packages themselves: outputs, states and gradients."""

from itertools import product

import pytest
import torch
from flashrnn import FlashRNNConfig
from flashrnn import flashrnn as their_flashrnn
from tolerances import assert_close
from torch import nn
from xlstm.blocks.slstm.block import sLSTMBlock, sLSTMBlockConfig
from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig
from xlstm.blocks.slstm.layer import sLSTMLayerConfig
from xlstm.components.feedforward import FeedForwardConfig

from xlstm_fused import FusedxLSTM, compat, convert

T, B, H, N = 9, 3, 12, 3


def optional(module):
    """The module, or a skip that says what is missing."""
    return pytest.importorskip(module, exc_type=ImportError, reason=f"{module} is not installed")


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def scrambled(module, std=0.4):
    """In float64 and with random numbers everywhere: many parameters of the xlstm package start as zeros."""
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=std)
    return module


def assert_same(got, expected, got_inputs, expected_inputs):
    """Lists of tensors, and their gradients for the same random cotangents."""
    for index, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        assert_close(mine, theirs, f"value {index}")
    cotangents = [torch.randn_like(value) for value in expected]
    gradients = [torch.autograd.grad(values, inputs, cotangents, retain_graph=True)
                 for values, inputs in ((got, got_inputs), (expected, expected_inputs))]
    for index, (mine, theirs) in enumerate(zip(*gradients, strict=True)):
        assert_close(mine, theirs, f"gradient {index}")


# nn.LSTM

LSTM_OPTIONS = [dict(num_layers=layers, bias=bias, batch_first=batch_first, bidirectional=both, proj_size=proj,
                     dropout=0.3 * (layers > 1))
                for layers, bias, batch_first, both, proj in product((1, 2), (True, False), (True, False),
                                                                     (True, False), (0, 3))]


@pytest.mark.parametrize("options", LSTM_OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_lstm_both_ways(options):
    lstm = nn.LSTM(5, 7, **options, dtype=torch.float64).eval()
    lstm.weight_hh_l0.requires_grad_(False)
    random = torch.get_rng_state()
    ours = convert.from_lstm(lstm)
    back = convert.to_lstm(ours)
    assert torch.equal(random, torch.get_rng_state())
    x = randn(T, B, 5)
    output, state = lstm(x)
    inputs = [[p for p in layer.parameters() if p.requires_grad] for layer in (lstm, ours, back)]
    for layer, parameters in ((ours, inputs[1]), (back, inputs[2])):
        result, final = layer(x)
        assert_same([result, *final], [output, *state], parameters, inputs[0])
        assert {name: getattr(layer, name) for name in convert.OPTIONS} == {
            name: getattr(lstm, name) for name in convert.OPTIONS}
        assert not layer.training
        for (name, mine), (their_name, theirs) in zip(layer.named_parameters(), lstm.named_parameters(), strict=True):
            assert name == their_name and mine.requires_grad == theirs.requires_grad and torch.equal(mine, theirs)
            assert mine.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_lstm_keeps_dtype_device_and_mode(dtype):
    lstm = nn.LSTM(3, 4, dtype=dtype)
    for layer in (convert.from_lstm(lstm), convert.to_lstm(convert.from_lstm(lstm))):
        assert layer.training and {(p.dtype, p.device.type, p.requires_grad) for p in layer.parameters()} == {
            (dtype, "cpu", True)}
    assert convert.from_lstm(nn.LSTM(3, 4, device="meta")).weight_ih_l0.device.type == "meta"


@pytest.mark.parametrize("options, words", (
    ({"cell": "slstm"}, "layer.cell: expected 'lstm'"), ({"num_heads": 2}, "layer.num_heads: expected 1"),
    ({"residual": True}, "layer.residual"), ({"layer_norm": True}, "layer.layer_norm"),
    ({"recurrent_dropout": 0.1}, "layer.recurrent_dropout")))
def test_what_nn_lstm_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        convert.to_lstm(FusedxLSTM(4, 4, **options))


def test_what_is_no_plain_lstm_is_refused():
    with pytest.raises(TypeError, match="lstm: expected an nn.LSTM, got GRU"):
        convert.from_lstm(nn.GRU(3, 4))
    with pytest.raises(TypeError, match="layer: expected a FusedxLSTM, got LSTM"):
        convert.to_lstm(nn.LSTM(3, 4))
    with pytest.raises(ValueError, match="remove parametrisations and pruning"):
        convert.from_lstm(nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"))
    assert convert.to_lstm(FusedxLSTM(3, 4, checkpoint_every=2, forget_bias=1.0)).hidden_size == 4


# the xlstm package

def slstm_block(ffn={}, num_heads=N, **options):
    config = sLSTMBlockConfig(sLSTMLayerConfig(embedding_dim=H, num_heads=num_heads, backend="vanilla", **options),
                              None if ffn is None else FeedForwardConfig(embedding_dim=H, **ffn))
    config._num_blocks, config._block_idx = 2, 1
    config.__post_init__()
    return scrambled(sLSTMBlock(config))


def cuda_state(module):
    """The state dict with the cell in the layout of backend "cuda", by the package's own conversion."""
    cell = next(each for each in module.modules() if hasattr(each, "_recurrent_kernel_"))
    other = sLSTMCell(sLSTMCellConfig(hidden_size=cell.config.hidden_size, num_heads=cell.config.num_heads,
                                      backend="cuda"), skip_backend_init=True).double()
    other.recurrent_kernel[:], other.bias[:] = cell.recurrent_kernel[:], cell.bias[:]
    state = module.state_dict()
    for name in state:
        last = name.rsplit(".", 1)[-1]
        if last in ("_recurrent_kernel_", "_bias_"):
            # The biases of one head are the same in both.
            assert (last == "_bias_" and cell.config.num_heads == 1) or not torch.equal(
                state[name].flatten(), getattr(other, last).flatten())
            state[name] = getattr(other, last).detach()
    return state


def converted(module, layout):
    if layout == "vanilla":
        return convert.from_xlstm(module)
    return convert.from_xlstm(cuda_state(module), module.config)


@pytest.mark.parametrize("layout", ("vanilla", "cuda"))
@pytest.mark.parametrize("function, S", (("slstm", 4), ("lstm", 2)))
@pytest.mark.parametrize("input_shape, output_shape", (("BSGNH", "BNSH"), ("SBGNH", "SBH"), ("BSGNH", "BSH"),
                                                       ("SBGNH", "SBNH")))
def test_xlstm_cell(layout, function, S, input_shape, output_shape):
    cell = scrambled(sLSTMCell(sLSTMCellConfig(
        hidden_size=H, num_heads=N, backend="vanilla", function=function, input_shape=input_shape,
        output_shape=output_shape)), std=1)
    ours = converted(cell, layout)
    x = (2 * randn(*((B, T) if input_shape[0] == "B" else (T, B)), 4 * H)).requires_grad_()
    state = randn(S, B, H).exp().requires_grad_()
    for start, inputs in ((None, [x]), (state, [x, state])):
        # The package gives parameters in other shapes: their gradients are compared in ours, by the same conversion.
        theirs, last = cell(x, start)
        mine, my_last = ours(x, start)
        assert_same([mine, my_last], [theirs, last], inputs, inputs)
        loss, my_loss = (theirs.sin().sum() + last.sin().sum(), mine.sin().sum() + my_last.sin().sum())
        gradients = torch.autograd.grad(loss, [cell._recurrent_kernel_, cell._bias_])
        expected = compat.slstm.cell_weights(*gradients)
        for mine, theirs in zip(torch.autograd.grad(my_loss, [ours.weight_hh, ours.bias]), expected, strict=True):
            assert_close(mine, theirs)


def gradients_in_ours(module, loss):
    """The gradients of the package's parameters as if they were weights to convert."""
    grads = torch.autograd.grad(loss, list(module.parameters()))
    state = {name: gradient for (name, _), gradient in zip(module.named_parameters(), grads)}
    as_ours = dict(convert.from_xlstm(state, module.config).named_parameters())
    # Gains are stored minus 1, which no gradient sees.
    return {name: value.detach() - float("norm_weight" in name) for name, value in as_ours.items()}


@pytest.mark.parametrize("layout", ("vanilla", "cuda"))
@pytest.mark.parametrize("kind, ffn, options", (
    ("layer", {}, {}), ("layer", {}, {"conv1d_kernel_size": 0}), ("layer", {}, {"group_norm_weight": False}),
    ("layer", {}, {"function": "lstm", "conv1d_kernel_size": 3}),
    ("block", {}, {}), ("block", None, {}), ("block", {"bias": True, "act_fn": "relu^2"}, {}),
    ("block", {"act_fn": "swish"}, {"conv1d_kernel_size": 2})))
def test_xlstm_layer_and_block(kind, ffn, options, layout):
    block = slstm_block(ffn, **options)
    theirs = block if kind == "block" else block.xlstm
    ours = converted(theirs, layout)
    x = randn(B, T, H).requires_grad_()
    assert_same([ours(x)], [theirs(x)], [x], [x])
    expected = gradients_in_ours(theirs, theirs(x).sin().sum())
    got = torch.autograd.grad(ours(x).sin().sum(), list(ours.parameters()))
    for (name, _), gradient in zip(ours.named_parameters(), got, strict=True):
        assert_close(gradient, expected[name], name)

    # Cut in two, shorter and longer than the convolution, with the states carried over.
    layer, my_layer = (block.xlstm, ours if kind == "layer" else ours.layer)
    for cut in (1, 5):
        results = []
        for module in (layer, my_layer):
            first, state = module(x[:, :cut], return_last_state=True)
            second, state = module(x[:, cut:], **state, return_last_state=True)
            results.append([first, second, state["slstm_state"]])
        assert_same(results[1], results[0], [x], [x])
        assert_close(torch.cat(results[1][:2], 1), my_layer(x))

    # Step by step, as the package's own step does, whose states ours reads too.
    with torch.no_grad():
        states = {}, {}
        for t in range(T):
            outputs = []
            for index, module in enumerate((theirs, ours)):
                states = list(states)
                y, states[index] = module.step(x[:, t:t + 1], **states[index])
                outputs.append(y)
            assert_close(outputs[1], outputs[0])
            assert_close(states[1]["slstm_state"], states[0]["slstm_state"])
        if kind == "layer":
            step = x[:, :1].clone()
            assert_close(ours.step(step, **states[0])[0], theirs.step(step, **states[0])[0])


def test_xlstm_keeps_dtypes_modes_and_what_is_frozen():
    block = slstm_block().float().eval()
    block.xlstm.slstm_cell._bias_.requires_grad_(False)
    ours = convert.from_xlstm(block)
    assert not ours.training and not ours.layer.slstm_cell.bias.requires_grad
    assert ours.layer.slstm_cell.weight_hh.requires_grad and {p.dtype for p in ours.parameters()} == {torch.float32}


def test_xlstm_refuses():
    block = slstm_block()
    state, config = block.state_dict(), block.config
    with pytest.raises(TypeError, match="source: expected a module of the xlstm package or its state dict, got int"):
        convert.from_xlstm(3)
    with pytest.raises(TypeError, match="config: expected the package's config beside a state dict, got None"):
        convert.from_xlstm(state)
    with pytest.raises(TypeError, match="config: expected None beside a module"):
        convert.from_xlstm(block, config)
    with pytest.raises(ValueError, match="of which one is _recurrent_kernel_"):
        convert.from_xlstm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no parameters but those of .*extra"):
        convert.from_xlstm({**state, "extra": state["xlstm_norm.weight"]}, config)
    with pytest.raises(ValueError, match="expected a parameter xlstm.fgate.weight"):
        convert.from_xlstm({name: value for name, value in state.items() if "fgate" not in name}, config)
    with pytest.raises(ValueError, match=r"config: expected hidden_size and num_heads .* \(12, 3\), got \(12, 4\)"):
        convert.from_xlstm(block.xlstm.slstm_cell.state_dict(), sLSTMCellConfig(hidden_size=H, num_heads=4))
    with pytest.raises(ValueError, match="config.gradient_recurrent_clipval: expected none"):
        convert.from_xlstm(block.xlstm.slstm_cell.state_dict(), sLSTMCellConfig(
            hidden_size=H, num_heads=N, gradient_recurrent_clipval=1.0))
    with pytest.raises(ValueError, match="_recurrent_kernel_: expected shape"):
        convert.from_xlstm({"_recurrent_kernel_": torch.zeros(3, 5, 4), "_bias_": torch.zeros(48)},
                           sLSTMCellConfig(hidden_size=H, num_heads=N))


# FlashRNN

def layouts():
    for recurrent, bias in product(("GHDP", "HGDP", "HPGD", "HPDG"), ("GHD", "HGD", "HDG")):
        yield "BTGHD", recurrent, bias, "SBTHD"
    yield "TBGHD", "GHDP", "GHD", "STBHD"
    yield "TBGHD", "HPDG", "HDG", "SBHTD"


@pytest.mark.parametrize("function, S", (("lstm", 2), ("slstm", 4)))
@pytest.mark.parametrize("input_shape, recurrent_shape, bias_shape, output_shape", list(layouts()))
def test_flashrnn(function, S, input_shape, recurrent_shape, bias_shape, output_shape):
    D = H // N
    config = FlashRNNConfig(head_dim=D, num_heads=N, batch_size=B, function=function, backend="vanilla",
                            input_shape=input_shape, recurrent_shape=recurrent_shape, bias_shape=bias_shape,
                            output_shape=output_shape)
    sizes = dict(B=B, T=T, G=4, H=N, D=D, P=D, S=S)
    wx, R, b = (randn(*(sizes[letter] for letter in shape)).requires_grad_()
                for shape in (input_shape, recurrent_shape, bias_shape))
    states = randn(*({**sizes, "T": 1}[letter] for letter in output_shape)).exp()
    states.select(output_shape.index("S"), S - 2).add_(1)
    for start in (None, states.requires_grad_()):
        inputs = [wx, R, b] + ([] if start is None else [start])
        assert_same(compat.flashrnn(wx, R, b, start, config=config), their_flashrnn(wx, R, b, start, config=config),
                    inputs, inputs)
    ours, weight_hh = convert.from_flashrnn(wx, R, b, function=function, input_shape=input_shape,
                                            recurrent_shape=recurrent_shape, bias_shape=bias_shape)
    assert ours.shape == (*(sizes[letter] for letter in input_shape[:2]), 4 * H) and weight_hh.shape == (4 * H, D)


@pytest.mark.parametrize("function", ("lstm", "slstm"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_flashrnn_in_its_calling_convention(function, dtype):
    wx, R, b = torch.randn(2, 5, 4, 2, 33, dtype=dtype), torch.randn(4, 2, 33, 33, dtype=dtype) / 6, randn(4, 2, 33)
    expected = their_flashrnn(wx, R, b.to(dtype), None, function, None, "vanilla")
    got = compat.flashrnn(wx, R, b.to(dtype), None, function, None, "cuda_fused", "bfloat16")
    for mine, theirs in zip(got, expected, strict=True):
        assert_close(mine, theirs)


def test_flashrnn_initial_value_and_refusals():
    wx, R, b = randn(B, T, 4, N, 4), randn(4, N, 4, 4), randn(4, N, 4)
    config = FlashRNNConfig(head_dim=4, num_heads=N, function="lstm", backend="vanilla", initial_val=[0.5, -1.0])
    for mine, theirs in zip(compat.flashrnn(wx, R, b, config=config), their_flashrnn(wx, R, b, config=config)):
        assert_close(mine, theirs)
    for arguments, error, words in (
            (dict(function="gru"), ValueError, "function: expected one of"),
            (dict(dtype="int8"), ValueError, "dtype: expected one of"), (dict(backend="tpu"), ValueError, "backend:"),
            (dict(R=R[:3]), ValueError, "R: expected shape"), (dict(b=3), TypeError, "b: expected a Tensor, got int"),
            (dict(Wx=wx[0]), ValueError, r"Wx: expected 5 dimensions \(B, T, G, H, D\), got 4"),
            (dict(states=randn(2, B, T, N, 4)), ValueError, "states: expected shape"),
            (dict(config=FlashRNNConfig(head_dim=4, num_heads=N, gradient_recurrent_cut=True)), ValueError,
             "config.gradient_recurrent_cut: expected none")):
        with pytest.raises(error, match=words):
            compat.flashrnn(**{"Wx": wx, "R": R, "b": b, **arguments})
    with pytest.raises(ValueError, match="R: expected a shape of the letters GHDP, got 'GHHP'"):
        convert.from_flashrnn(wx, R, b, recurrent_shape="GHHP")


@pytest.mark.parametrize("heads, layout", ((3, "vanilla"), (1, "cuda")))
def test_safetensors(heads, layout, tmp_path):
    safetensors = optional("safetensors.torch")
    block = slstm_block(num_heads=heads)
    ours = converted(block, layout)
    safetensors.save_file(ours.state_dict(), tmp_path / "block.safetensors")
    other = compat.SLSTMBlock(compat.SLSTMLayer(H, heads), ours.proj_down.in_features).double()
    other.load_state_dict(safetensors.load_file(tmp_path / "block.safetensors"))
    x = randn(B, T, H)
    assert torch.equal(other(x), ours(x))
    assert_close(ours(x), block(x))
