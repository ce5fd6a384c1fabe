"""patch_xlstm, the RL wrappers, the example and the documents, with the packages that they are for."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from test_convert import B, H, N, T, assert_same, cuda_state, optional, randn, scrambled, slstm_block
from tolerances import assert_close, relative_error
from torch import nn
from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig
from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

from xlstm_fused import FusedxLSTM, compat
from xlstm_fused.compat import patch

ROOT = Path(__file__).resolve().parents[1]


# patch_xlstm

def test_patched_models_give_the_same_forecast_and_gradients():
    model = nn.Sequential(*(slstm_block() for _ in range(3)), scrambled(nn.Linear(H, 2)))
    x = randn(B, T, H).requires_grad_()
    inputs = [x, *model.parameters()]
    original, state = type(model[0].xlstm.slstm_cell).forward, model.state_dict()
    expected = model(x)
    with compat.patch_xlstm(("xlstm",)) as patched:
        assert repr(patched) == "<patch of xlstm, active>" and patched.packages == ("xlstm",)
        assert type(model[0].xlstm.slstm_cell).forward is not original
        assert_same([model(x)], [expected], inputs, inputs)
        assert all(value is model.state_dict()[name] or torch.equal(value, model.state_dict()[name])
                   for name, value in state.items())
        steps, states = [], [{} for _ in model[:-1]]
        with torch.no_grad():
            for t in range(T):
                y = x[:, t:t + 1]
                for index, block in enumerate(model[:-1]):
                    y, states[index] = block.step(y, **states[index])
                steps.append(model[-1](y))
        assert_close(torch.cat(steps, 1), expected)
        with pytest.raises(RuntimeError, match="expected no active patch"):
            compat.patch_xlstm()
    assert type(model[0].xlstm.slstm_cell).forward is original
    assert torch.equal(model(x), expected)


def test_patch_as_a_call_makes_cells_of_backend_cuda_run_without_nvcc():
    block = slstm_block()
    config = sLSTMLayerConfig(embedding_dim=H, num_heads=N, backend="cuda")
    handle = compat.patch_xlstm(("xlstm",), backend="cpu")
    try:
        layer = sLSTMLayer(config).double()
        layer.load_state_dict(cuda_state(block.xlstm))
        x = randn(B, T, H)
        patched = layer(x), layer.slstm_cell.step(randn(B, 1, 4 * H), None)[1]
        clipped = sLSTMCell(sLSTMCellConfig(hidden_size=H, num_heads=N, gradient_recurrent_cut=True))
        with pytest.raises(RuntimeError, match="without gradient_recurrent_cut"):
            clipped(torch.randn(B, T, 4 * H))
    finally:
        handle.close()
    handle.undo()
    assert_close(patched[0], block.xlstm(x))
    assert patched[1].shape == (4, B, H) and patched[1][2].min() >= 1
    with pytest.raises(RuntimeError, match="made under patch_xlstm"):
        layer(x)


def test_patch_refuses(monkeypatch):
    with pytest.raises(ValueError, match="packages: expected a tuple of"):
        compat.patch_xlstm(("flashrnn",))
    with pytest.raises(ValueError, match="packages: expected a tuple of .* got 'xlstm'"):
        compat.patch_xlstm("xlstm")
    with pytest.raises(ValueError, match="backend: expected"):
        compat.patch_xlstm(backend="gpu")
    monkeypatch.setattr(patch, "version", lambda name: "3.0.0")
    with pytest.raises(RuntimeError, match="expected xlstm of version 2.0.4 or 2.0.5 or 2.0.6, .* got 3.0.0"):
        compat.patch_xlstm(("xlstm",))

    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)
    monkeypatch.setattr(patch, "version", nothing)
    with pytest.raises(ModuleNotFoundError, match="got neither"):
        compat.patch_xlstm()
    with pytest.raises(ModuleNotFoundError, match="expected tirex-ts to be installed"):
        compat.patch_xlstm(("tirex",))


def test_patched_tirex():
    TiRexZero = optional("tirex.models.tirex").TiRexZero
    config = dict(input_patch_size=8, output_patch_size=8, quantiles=[0.1, 0.5, 0.9], input_ff_dim=16,
                  block_kwargs=dict(embedding_dim=H, num_heads=N, num_blocks=2))
    model = TiRexZero("torch", config, train_ctx_len=128).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    cell, wx = model.blocks[0].slstm_layer.slstm_cell, torch.randn(B, 40, 4 * H)
    # The truth in float64: the xlstm package's cell, by its own conversion between layouts.
    truth = sLSTMCell(sLSTMCellConfig(hidden_size=H, num_heads=N, backend="vanilla")).double()
    other = sLSTMCell(sLSTMCellConfig(hidden_size=H, num_heads=N, backend="cuda"), skip_backend_init=True)
    other.load_state_dict(cell.state_dict())
    truth.recurrent_kernel[:], truth.bias[:] = other.recurrent_kernel[:].double(), other.bias[:].double()
    series = torch.randn(B, 128).cumsum(1)
    with torch.no_grad():
        exact, exact_state = truth(wx.double())
        theirs, forecast = cell(wx, None)[0], model.forecast(series, prediction_length=16)[0]
        with compat.patch_xlstm(("tirex",)):
            mine, state = cell(wx, None)
            patched = model.forecast(series, prediction_length=16)[0]
    # Theirs rounds to bfloat16 at every step, and clamps the forget gate at 15.
    assert relative_error(mine, exact) < 1e-5 < relative_error(theirs, exact)
    assert relative_error(state, exact_state) < 1e-5
    assert relative_error(patched, forecast) < 1e-2


# reinforcement learning

RL_OPTIONS = ({}, {"num_layers": 2}, {"num_layers": 2, "bias": False}, {"proj_size": 3}, {"bidirectional": True})


@pytest.mark.parametrize("options", RL_OPTIONS, ids=str)
@pytest.mark.parametrize("resets", (0.0, 0.3))
@pytest.mark.parametrize("batch", ((5,), (2, 3), ()))
def test_torchrl_module(options, resets, batch):
    modules, TensorDict = optional("torchrl.modules"), optional("tensordict").TensorDict
    from xlstm_fused.compat.rl import FusedLSTMModule

    keys = dict(in_keys=["observation", "h", "c"], out_keys=["features", ("next", "h"), ("next", "c")])
    lstm = nn.LSTM(4, 6, batch_first=True, dtype=torch.float64, **options)
    theirs, ours = modules.LSTMModule(lstm=lstm, recurrent_backend="pad", **keys), FusedLSTMModule(lstm, **keys)
    states = lstm.num_layers * (1 + lstm.bidirectional)
    rollout = TensorDict({"observation": randn(*batch, T, 4), "h": randn(*batch, T, states, lstm.proj_size or 6),
                          "c": randn(*batch, T, states, 6), "is_init": torch.rand(*batch, T, 1) < resets}, (*batch, T))
    for data in (rollout, rollout.exclude("h", "c")):
        with modules.set_recurrent_mode(True):
            mine, expected = (module(data.clone()) for module in (ours, theirs))
        assert_same(*([values[key] for key in keys["out_keys"]] for values in (mine, expected)),
                    list(ours.parameters()), list(theirs.parameters()))
    if not lstm.proj_size:                              # one step with a projection fails in torchrl itself
        step = rollout[..., 0]
        for key in keys["out_keys"]:
            assert_close(ours(step.clone())[key], theirs(step.clone())[key])


def test_torchrl_module_refuses():
    optional("torchrl.modules")
    from xlstm_fused.compat.rl import FusedLSTMModule

    keys = {"in_key": "observation", "out_key": "features"}
    for arguments, error, words in (
            (dict(lstm=FusedxLSTM(3, 4, batch_first=True, cell="slstm")), ValueError, "expected the cell 'lstm'"),
            (dict(lstm=nn.GRU(3, 4)), TypeError, "lstm: expected an nn.LSTM, a FusedxLSTM or None, got GRU"),
            (dict(lstm=nn.LSTM(3, 4), hidden_size=4), ValueError, "expected None beside options"),
            (dict(lstm=nn.LSTM(3, 4)), ValueError, "batch_first=True")):
        with pytest.raises(error, match=words):
            FusedLSTMModule(**arguments, **keys)


def test_ppo_has_the_same_curve_in_one_call_as_in_the_loop(monkeypatch):
    optional("gymnasium")
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = importlib.import_module("ppo_memory")
    options = dict(updates=12, number=8, steps=48, hidden_size=32)
    curve, _ = example.train(True, **options)
    loop_curve, _ = example.train(False, **options)
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(loop_curve), rtol=1e-9, atol=1e-9)
    assert len(set(curve)) > 6


# documents

def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)


BLOCKS = [(f"{name} {index}", block) for name in ("migrating.md", "rl.md") for index, block in enumerate(blocks(name))]


@pytest.mark.parametrize("name, block", BLOCKS, ids=[name for name, _ in BLOCKS])
@pytest.mark.filterwarnings("default")                  # of packages in the blocks
def test_block_of_documents_runs(name, block):
    for package in ("gymnasium", "safetensors", "sb3_contrib", "tensordict", "tirex", "torchrl"):
        if f"from {package}" in block or f"import {package}" in block:
            optional(package)
    exec(compile(block, name, "exec"), {})


@pytest.mark.filterwarnings("default")
def test_recipe_for_sb3_contrib_trains_as_its_own_policy():
    RecurrentPPO = optional("sb3_contrib").RecurrentPPO
    recipe = {}
    exec(next(block for block in blocks("rl.md") if "sb3_contrib" in block), recipe)
    models = [RecurrentPPO(policy, "CartPole-v1", n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu",
                           policy_kwargs={"lstm_hidden_size": 16}).learn(128)
              for policy in (recipe["FusedPolicy"], "MlpLstmPolicy")]
    (names, ours), (their_names, theirs) = (zip(*model.policy.named_parameters()) for model in models)
    assert isinstance(models[0].policy.lstm_actor, FusedxLSTM) and sorted(names) == sorted(their_names)
    theirs = dict(zip(their_names, theirs))
    for name, value in zip(names, ours):
        assert relative_error(value, theirs[name]) < 1e-4, name
