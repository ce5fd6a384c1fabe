"""``from_slides`` against the slides' cell, run step by step."""

import pytest
import torch
from tolerances import assert_close
from torch import nn

from xlstm_fused.slides import from_slides

T, B, I, H = 6, 3, 2, 4


class Cell(nn.Module):
    def __init__(self, input_size, hidden_size, bias=True):
        super().__init__()
        self.gates = nn.Linear(input_size + hidden_size, 4 * hidden_size, bias)
        self.output_gate = nn.Linear(hidden_size, hidden_size)

    def forward(self, x, h, c):
        i, f, g, o = self.gates(torch.cat((x, h), -1)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Stack(nn.Module):
    def __init__(self, layers, bias):
        super().__init__()
        self.cells = nn.ModuleList(Cell(H if layer else I, H, bias) for layer in range(layers))

    def forward(self, x):
        states = []
        for cell in self.cells:
            h, c, outputs = x.new_zeros(B, H), x.new_zeros(B, H), []
            for step in x:
                h, c = cell(step, h, c)
                outputs.append(h)
            x = torch.stack(outputs)
            states.append((h, c))
        return x, states


@pytest.mark.parametrize("layers, bias", ((2, True), (11, False)))
def test_equals_the_slides_stack(layers, bias):
    stack = Stack(layers, bias).double()
    x = torch.randn(T, B, I, dtype=torch.float64)
    expected, states = stack(x)
    with pytest.warns(UserWarning, match="cells.0.output_gate.weight, .*: left out"):
        layer = from_slides(stack.state_dict())
    output, (h, c) = layer(x)
    assert_close(output, expected)
    assert_close(h, torch.stack([h for h, _ in states]))
    assert_close(c, torch.stack([c for _, c in states]))


def test_one_cell_without_the_unused_gate_warns_of_nothing_and_takes_options():
    cell = Cell(I, H)
    weights = {name: value for name, value in cell.state_dict().items() if name.startswith("gates")}
    layer = from_slides(weights, batch_first=True)
    x = torch.randn(B, 1, I)
    assert_close(layer(x)[0][:, 0], cell(x[:, 0], torch.zeros(B, H), torch.zeros(B, H))[0])


@pytest.mark.parametrize("state_dict, message", (
    ({}, r"expected a gates.weight for every layer, got \[\]"),
    ({"gates.bias": torch.zeros(8)}, "expected a gates.weight for every layer"),
    ({"gates.weight": torch.zeros(8, 5), "head.weight": torch.zeros(1, 2)}, "got 'head.weight'"),
    ({"gates.weight": torch.zeros(9, 5)}, r"expected gates.weight \(4H, I \+ H\)"),
    ({"gates.weight": torch.zeros(8, 2)}, r"expected gates.weight \(4H, I \+ H\)"),
    ({"gates.weight": torch.zeros(8, 5), "gates.bias": torch.zeros(7)}, r"expected gates.bias \(4H,\) = \(8,\)"),
    ({"cells.0.gates.weight": torch.zeros(8, 5), "cells.1.gates.weight": torch.zeros(8, 5)}, "= .8, 4. in layer 1"),
    ({"0.gates.weight": torch.zeros(8, 5), "1.gates.weight": torch.zeros(8, 4), "1.gates.bias": torch.zeros(8)},
     "gates.bias for all 2 layers or none, got 1"),
))
def test_errors_say_what_is_wrong(state_dict, message):
    with pytest.raises(ValueError, match=message):
        from_slides(state_dict)
