"""torch.compile without graph breaks or recompilations, and torch.export, over any length and batch size."""

import io

import pytest
import torch
from tolerances import assert_close
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_leaves

from xlstm_fused import FusedxLSTM, FusedxLSTMCell, LayerTrace, backends, recurrence
from xlstm_fused.cells import CELLS

SIZES = ((7, 6), (5, 4), (3, 9), (9, 2))
"""T and B of each call. In the first they differ from each other and from all that does not vary: torch.compile takes
sizes that are the same once for the same forever."""

I, H = 3, 4
both_cells = pytest.mark.parametrize("cell", CELLS)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors(result):
    """Every tensor in a result, those of a trace included."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, LayerTrace):
        result = (*result.gates.values(), *result.states.values())
    return [tensor for part in result for tensor in tensors(part)]


def states(cell, *shape):
    return tuple(torch.rand(*shape) + 0.5 for _ in CELLS[cell].states)


def options(case, cell, T, B):
    """Keyword arguments of a bidirectional layer."""
    lengths, reset = torch.randint(T + 1, (B,)), torch.rand(T, B) < 0.4
    return {
        "dense": {},
        "ragged": {"lengths": lengths, "reset": reset},
        "trace": {"lengths": lengths, "reset": reset.long(), "trace": True},
        "states": {"hx": states(cell, 2, B, H), "reset": reset, "reset_state": states(cell, T, B, 2, H)},
    }[case]


def check(module, calls, gradients=True, backend="aot_eager", dynamic=True):
    """Compiled results and gradients are the module's. Compiled is once, for sizes that vary; or, unless ``dynamic``,
    for those of the first call, and once more when they do vary."""
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=dynamic)
    for index, (arguments, keywords) in enumerate(calls):
        with torch._dynamo.config.patch(error_on_recompile=index >= (1 if dynamic else 2)):
            results = []
            for run in (module, compiled):
                values = tensors(run(*arguments, **keywords))
                if gradients:
                    loss = sum(value.square().sum() for value in values)
                    values += torch.autograd.grad(loss, list(module.parameters()))
                results.append(values)
        for number, (want, got) in enumerate(zip(*results, strict=True)):
            assert_close(got, want, f"call {index}, result {number}")


@pytest.mark.parametrize("cell, case", (("lstm", "ragged"), ("slstm", "ragged"), ("lstm", "trace"), ("slstm", "trace"),
                                        ("slstm", "states")))
def test_compile(cell, case):
    module = FusedxLSTM(I, H, bidirectional=case != "trace", cell=cell, num_heads=2, backend="cpu")
    check(module, [((torch.randn(T, B, I),), options(case, cell, T, B)) for T, B in SIZES])


@both_cells
def test_compile_without_a_word_about_sizes(cell):
    module = FusedxLSTM(I, H, 2, cell=cell, backend="reference")
    check(module, [((torch.randn(T, B, I),), {}) for T, B in SIZES], dynamic=None)


# torch's own import of what inductor needs.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("cell, case", (("lstm", "ragged"), ("slstm", "dense")))
def test_compile_with_inductor(cell, case):
    module = FusedxLSTM(I, H, bidirectional=True, cell=cell)
    check(module, [((torch.randn(T, B, I),), options(case, cell, T, B)) for T, B in SIZES], backend="inductor")


@pytest.mark.parametrize("cell, mode", (("lstm", torch.no_grad), ("slstm", torch.inference_mode)))
def test_compiled_inference(cell, mode):
    module = FusedxLSTM(I, H, 2, batch_first=True, cell=cell, residual=True, layer_norm=True)
    with mode():
        check(module, [((torch.randn(B, T, I),), {"lengths": torch.randint(T + 1, (B,))}) for T, B in SIZES],
              gradients=False)


class _Recurrence(torch.nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell, self.weight = cell, torch.nn.Parameter(torch.randn(4 * H, H) / 2)

    def forward(self, wx):
        return recurrence(wx, self.weight, cell=self.cell, reverse=True)


def test_compile_sequences_end_to_end():
    check(FusedxLSTM(I, H, cell="slstm"), [((torch.randn(T, I),), {"cu_seqlens": torch.tensor([0, *ends, T])})
                                           for T, ends in ((8, (2, 2, 2, 4)), (9, (1, 4, 6)), (6, (3, 6)))])


def test_compile_beside_checkpoint_every():
    check(FusedxLSTM(I, H, checkpoint_every=2), [((torch.randn(T, B, I),), {}) for T, B in SIZES])


def test_compile_beside_recurrent_dtype():
    check(FusedxLSTM(I, H, recurrent_dtype=torch.bfloat16), [((torch.randn(T, B, I),), {}) for T, B in SIZES])


def test_compile_a_step():
    check(FusedxLSTMCell(I, H, cell="slstm"), [((torch.randn(B, I), states("slstm", B, H)), {}) for _, B in SIZES])


def test_compile_a_recurrence():
    check(_Recurrence("lstm"), [((torch.randn(T, B, 4 * H),), {}) for T, B in SIZES])


def test_compiled_per_sample_gradients():
    module = FusedxLSTM(I, H, cell="slstm")
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    function = vmap(grad(lambda p, x: functional_call(module, p, (x,))[0].square().sum()), (None, 0))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for V, T in ((5, 7), (2, 4)):
        x = torch.randn(V, T, I)
        for got, want in zip(compiled(parameters, x).values(), function(parameters, x).values(), strict=True):
            assert_close(got, want)


@pytest.mark.parametrize("cell, strict", (("lstm", False), ("slstm", True)))
# torch.export.load of torch 2.11, on what it has just read.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
# Python's own copyreg, on behalf of what torch.export pickles.
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_export(cell, strict):
    module = FusedxLSTM(I, H, 2, cell=cell)
    op = "inference_from_input" if backends()["cpu"].ready else "inference"
    T, B = torch.export.Dim("T"), torch.export.Dim("B")
    program = torch.export.export(
        module, (torch.randn(5, 3, I),), {"lengths": torch.tensor([5, 0, 2]), "reset": torch.rand(5, 3) < 0.5},
        dynamic_shapes={"input": {0: T, 1: B}, "lengths": {0: B}, "reset": {0: T, 1: B}}, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    program = torch.export.load(file)
    for each in (program, program.run_decompositions()):
        names = [str(node.target) for node in each.graph.nodes]
        assert [name for name in names if "xlstm_fused" in name] == [f"xlstm_fused.{op}.default"] * 2
    loaded = program.module()
    for T, B in SIZES[1:]:
        arguments, keywords = (torch.randn(T, B, I),), options("ragged", cell, T, B)
        got, want = loaded(*arguments, **keywords), module(*arguments, **keywords)
        for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True):
            assert_close(a, b)
    # The program trains as the module does.
    for parameters in (loaded, module):
        parameters(*arguments, **keywords)[0].square().sum().backward()
    gradients = dict(loaded.named_parameters())
    for name, parameter in module.named_parameters():
        assert_close(gradients[name].grad, parameter.grad, name)
