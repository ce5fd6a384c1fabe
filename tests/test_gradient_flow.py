"""``viz.gradient_norms`` against finite differences and against a loop over steps, and its picture."""

import pytest
import torch
from tolerances import RELATIVE, relative_error
from torch import nn

from xlstm_fused import FusedxLSTM, viz
from xlstm_fused.cells import CELLS

T, B, I, H = 4, 2, 3, 4


def loop_loss(model, x, layer, nudges, K):
    """The loss as a loop over steps computes it, with ``nudges[k]`` (T, B, H) added to ``h`` of one layer."""
    kind, N = CELLS[getattr(model, "cell", "lstm")], getattr(model, "num_heads", 1)
    G, D = len(kind.gates), H // N
    value = x
    for index in range(model.num_layers):
        directions = []
        for k in range(K):
            def parameter(name):
                return getattr(model, f"{name}_l{index}" + ("_reverse" if k else ""))

            matrix = parameter("weight_hh").view(G, N, D, D)
            wx = value @ parameter("weight_ih").t() + parameter("bias_ih") + parameter("bias_hh")
            state = tuple(x.new_zeros(B, N, D) for _ in kind.states)
            outputs = [None] * T
            for t in reversed(range(T)) if k else range(T):
                pre = wx[t].view(B, G, N, D) + torch.einsum("gnde,bne->bgnd", matrix, state[0])
                state = kind.step(pre.unbind(1), state)
                if index == layer:
                    state = (state[0] + nudges[k, t].view(B, N, D), *state[1:])
                outputs[t] = state[0].reshape(B, H)
            directions.append(torch.stack(outputs))
        h = torch.cat(directions, -1)
        if getattr(model, "layer_norm", False):
            names = (f"norm_weight_l{index}", f"norm_bias_l{index}")
            h = nn.functional.layer_norm(h, h.shape[2:], *(getattr(model, name) for name in names))
        value = value + h if getattr(model, "residual", False) and value.shape == h.shape else h
    return value[-1].square().mean()


MODELS = {
    "nn.LSTM": lambda: nn.LSTM(I, H, 2),
    "lstm": lambda: FusedxLSTM(I, H, 2),
    "slstm, heads": lambda: FusedxLSTM(I, H, 2, cell="slstm", num_heads=2),
    "residual, layer_norm": lambda: FusedxLSTM(I, H, 3, residual=True, layer_norm=True),
    "slstm, bidirectional": lambda: FusedxLSTM(I, H, 2, cell="slstm", bidirectional=True, residual=True),
}


@pytest.mark.parametrize("name, layer", [(name, 0) for name in MODELS] + [("slstm, heads", -1)])
def test_norms_are_those_of_finite_differences_and_of_autograd(name, layer):
    model = MODELS[name]().double()
    x = torch.randn(T, B, I, dtype=torch.float64)
    K = 2 if model.bidirectional else 1
    nudges = torch.zeros(K, T, B, H, dtype=torch.float64, requires_grad=True)

    def function(nudges):
        return loop_loss(model, x, layer % model.num_layers, nudges, K)

    gradient, = torch.autograd.grad(function(nudges), nudges)
    norms = viz.gradient_norms(model, x, layer)
    assert relative_error(norms, gradient.movedim(1, 0).flatten(1).norm(dim=1)) < RELATIVE[torch.float64]
    assert all(parameter.grad is None for parameter in model.parameters())

    # One step's worth of finite differences: the first, from which the way is longest.
    differences = []
    with torch.no_grad():
        for index in range(B * H):
            for k in range(K):
                nudge = torch.zeros_like(nudges)
                nudge[k, 0].view(-1)[index] = 1e-5
                differences.append((function(nudge) - function(-nudge)) / 2e-5)
    assert relative_error(norms[0], torch.stack(differences).norm()) < 1e-6


def test_layouts_agree_and_a_loss_may_be_given():
    model, x = FusedxLSTM(I, H, 2, batch_first=True), torch.randn(B, T, I)
    other = FusedxLSTM(I, H, 2)
    other.load_state_dict(model.state_dict())
    model.requires_grad_(False)

    def loss(output):
        return output.square().mean()

    norms = viz.gradient_norms(model, x, 0, loss=loss)
    torch.testing.assert_close(norms, viz.gradient_norms(other, x.transpose(0, 1), 0, loss=loss))
    assert not torch.allclose(norms, viz.gradient_norms(model, x, 0))
    torch.testing.assert_close(viz.gradient_norms(model, x[:1], 0), viz.gradient_norms(model, x[0], 0))


def test_figure_shows_the_norms():
    models, x = {"LSTM": nn.LSTM(I, H), "sLSTM": FusedxLSTM(I, H, cell="slstm")}, torch.randn(T, B, I)
    axes, = viz.gradient_flow(models, x).axes
    assert axes.get_yscale() == "log" and axes.get_xlabel() == "step t" and "gradient" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(models)
    for line, model in zip(axes.lines, models.values()):
        torch.testing.assert_close(torch.tensor(line.get_ydata()), viz.gradient_norms(model, x))
    axes, = viz.gradient_flow(models["LSTM"], x).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["LSTM"]


@pytest.mark.parametrize("model, layer, error, message", (
    (nn.Linear(I, H), -1, TypeError, "models: expected FusedxLSTM or nn.LSTM, got Linear"),
    (nn.GRU(I, H), -1, TypeError, "models: expected FusedxLSTM or nn.LSTM, got GRU"),
    (nn.LSTM(I, H, proj_size=2), -1, ValueError, "models: expected proj_size = 0, got 2"),
    (FusedxLSTM(I, H), 1, IndexError, "layer: expected an index into 1 layers, got 1"),
))
def test_errors(model, layer, error, message):
    with pytest.raises(error) as caught:
        viz.gradient_norms(model, torch.randn(T, B, I), layer)
    assert str(caught.value) == message
