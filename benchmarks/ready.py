"""A contestant with its data: what is timed, and what of it is checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .problem import Problem


@dataclass
class Ready:
    """A contestant with its data, ready to run.

    ``forward()`` returns the output, (T, B, K*H) or a PackedSequence, and the final states or None. ``leaves`` are
    the tensors that a backward differentiates, in the contestant's own layout, besides ``x``; ``native`` makes them
    from the problem's parameters, if they are not those.
    """

    problem: Problem
    forward: Callable[[], tuple]
    x: Tensor
    leaves: dict[str, Tensor]
    native: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None

    def __post_init__(self):
        self._cotangent = None
        self.output_dtype = ""

    def train(self) -> Tensor:
        """A training step of the layer: forward, and gradients of the input and of every parameter."""
        self.x.grad = None
        for leaf in self.leaves.values():
            leaf.grad = None
        output = self.forward()[0]
        data = output.data if isinstance(output, PackedSequence) else output
        if self._cotangent is None:
            self._cotangent = self.problem.cotangent(data.dtype)
        data.backward(self._cotangent)
        return data

    def infer(self) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        with torch.inference_mode():
            return self.forward()

    def runner(self, mode: str):
        return self.train if mode == "training" else self.infer

    def results(self, mode: str) -> dict[str, Tensor]:
        """Everything that is checked, by name, in the problem's own layout."""
        output, final = self.infer()
        found = {"output": output.data if isinstance(output, PackedSequence) else output}
        self.output_dtype = str(found["output"].dtype).removeprefix("torch.")
        if final is not None:
            found |= {f"final {name}": value for name, value in zip("hcnm", final)}
        if mode == "training":
            self.train()
            found |= {f"gradient of {name}": value for name, value in self._gradients().items()}
            self.x.grad = None
        # Copies, since what a compiled or graphed function returns may be overwritten by its next call.
        return {name: value.detach().double().clone() for name, value in found.items()}

    def _gradients(self) -> dict[str, Tensor]:
        gradients = {name: leaf.grad for name, leaf in self.leaves.items()}
        if self.native is not None:
            # The leaves are linear in the parameters: pull their gradients back.
            parameters = {name: value.to(self.x.dtype).requires_grad_()
                          for name, value in self.problem.parameters("fp32").items()}
            made = self.native(parameters)
            pulled = torch.autograd.grad([made[name] for name in gradients], list(parameters.values()),
                                         list(gradients.values()))
            gradients = dict(zip(parameters, pulled))
        return {"x": self.x.grad, **gradients}
