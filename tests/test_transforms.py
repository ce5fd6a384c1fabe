"""torch.func, forward mode and the rest of what torch does to a function, against loops and plain autograd."""

from dataclasses import replace

import pytest
import torch
from problems import LAYOUTS, Problem
from test_reference import through_ops
from tolerances import assert_close
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from xlstm_fused import FusedxLSTM
from xlstm_fused.backends import backends
from xlstm_fused.cells import CELLS

BACKENDS = [name for name in ("cpu", "reference") if backends()[name].ready]
V, T, B, H = 3, 4, 2, 4

# torch itself scripts its decompositions when forward mode is first used.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
both_cells = pytest.mark.parametrize("cell", CELLS)
both_backends = pytest.mark.parametrize("backend", BACKENDS)
needs_cpu = pytest.mark.skipif("cpu" not in BACKENDS, reason="the cpu backend is not built")


def assert_all_close(got, expected):
    got, expected = tree_leaves(got), tree_leaves(expected)
    assert len(got) == len(expected) > 0
    for index, (value, want) in enumerate(zip(got, expected)):
        assert_close(value, want, f"result {index}")


def stacked(values):
    """One tree of tensors from several."""
    return tree_map(lambda *parts: torch.stack(parts), *values)


def loop(function, in_dims, *arguments):
    """What ``vmap(function, in_dims)(*arguments)`` means, for in_dims of None and 0."""
    return stacked([function(*(value if dim is None else tree_map(lambda part: part[v], value)
                               for value, dim in zip(arguments, in_dims))) for v in range(V)])


# The ops: every layout, with what is batched decided by `what`.

WHAT = {"data": (("weight_hh", "h_mask"), True), "weights": ((), False), "all": ((), True)}
"""The tensors that are the same in all problems, and whether resets and lengths differ."""


def problems(what, **options):
    """V problems of one layout, and the names of what they have in common."""
    shared, rows_differ = WHAT[what]
    first, *others = (Problem.random(D=3, **options) for _ in range(V))
    for shift, other in enumerate(others, 1):
        other.tensors |= {name: first.tensors[name] for name in shared if name in first.tensors}
        if "h_mask" in shared:
            other.h_mask = first.h_mask
        if not rows_differ:
            other.reset = first.reset
        elif first.rows.batch_offset is not None:
            lengths = first.rows.length.roll(shift)
            other.rows = replace(first.rows, length=lengths, batch_offset=lengths.cumsum(0) - lengths)
        elif first.rows.length is not None and first.rows.time_offset is None:
            other.rows = replace(first.rows, length=first.rows.length.roll(shift))
    return [first, *others], shared


def batched(problems, shared, backend):
    """``(function, tensors, rest, in_dims)`` for vmap, of all problems together."""
    first = problems[0]
    inputs = [{"tensors": each.tensors, "reset": each.reset, "h_mask": each.h_mask, "length": each.rows.length,
               "batch_offset": each.rows.batch_offset, "cotangents": each.cotangents} for each in problems]
    same = {name: all(each[name] is inputs[0][name] for each in inputs) for name in inputs[0]}
    tensors = {name: value if name in shared else torch.stack([each["tensors"][name] for each in inputs])
               for name, value in first.tensors.items()}
    rest = {name: value if same[name] else stacked([each[name] for each in inputs])
            for name, value in inputs[0].items() if name != "tensors"}
    dims = {name: None if name in shared else 0 for name in tensors}, {
        name: None if same[name] else 0 for name in rest}

    def function(tensors, rest):
        rows = replace(first.rows, length=rest["length"], batch_offset=rest["batch_offset"])
        return through_ops(tensors, replace(first, rows=rows, reset=rest["reset"], h_mask=rest["h_mask"]), backend)

    return function, tensors, rest, dims


# torch's own vmap of searchsorted expands what all problems share.
@pytest.mark.filterwarnings("ignore:torch.searchsorted.*input value tensor is non-contiguous:UserWarning")
@pytest.mark.parametrize("backend, layouts", (pytest.param("cpu", LAYOUTS, marks=needs_cpu),
                                               ("reference", ("lengths", "packed"))))
@pytest.mark.parametrize("what", WHAT)
@both_cells
def test_vmap_of_the_ops_is_a_loop(cell, what, backend, layouts):
    resets = ("per row", "zero", "per sequence", "none")
    for index, layout in enumerate(layouts):
        if layout == "no sequence":
            continue
        each, shared = problems(what, cell=cell, layout=layout, K=1 + index % 2, N=2 - index % 2,
                                reverse=index % 3 == 1, reset=resets[index % 4], masked=index % 2 == 0)
        function, tensors, rest, dims = batched(each, shared, backend)
        expected = [problem.run(lambda t, p: through_ops(t, p, backend)) for problem in each]
        expected_values = [torch.stack(parts) for parts in zip(*(values.values() for values, _ in expected))]
        expected_gradients = stacked([gradients for _, gradients in expected])

        def values_and_gradients(tensors, rest):
            values, pull_back = vjp(lambda tensors: function(tensors, rest), tensors)
            return values, pull_back(tuple(rest["cotangents"]))[0]

        values, gradients = vmap(values_and_gradients, in_dims=dims)(tensors, rest)
        assert_all_close(values, expected_values)
        assert_all_close(gradients, expected_gradients)

        leaves = {name: value.clone().requires_grad_() for name, value in tensors.items()}
        values = vmap(function, in_dims=dims)(leaves, rest)
        gradients = torch.autograd.grad(values, list(leaves.values()), rest["cotangents"])
        for name, gradient in zip(leaves, gradients):
            expected_gradient = expected_gradients[name]
            assert_close(gradient, expected_gradient.sum(0) if name in shared else expected_gradient, name)


# The layer.


def layer(cell, backend, **options):
    """A layer with all that makes a layer, and a function of ``(parameters, x, hx, lengths, reset, reset_state)``."""
    module = FusedxLSTM(2, H, 2, bidirectional=True, cell=cell, num_heads=2, dtype=torch.float64, backend=backend,
                        **options)

    def run(parameters, x, hx, lengths, reset, reset_state):
        return functional_call(module, parameters, (x, hx),
                               {"lengths": lengths, "reset": reset, "reset_state": reset_state})

    return module, {name: value.detach() for name, value in module.named_parameters()}, run


def loss_of(run):
    """A scalar of every result of ``run``."""
    def loss(*arguments):
        output, state = run(*arguments)
        return output.square().sum() + sum(value.pow(3).sum() for value in state)
    return loss


def inputs(cell, *lead, batch_first=False):
    """Random ``(x, hx, lengths, reset, reset_state)``, each with leading dimensions ``lead``."""
    def state():
        return tuple(torch.rand(*lead, 4, B, H, dtype=torch.float64) + 0.5 for _ in CELLS[cell].states)

    time = (B, T) if batch_first else (T, B)
    return (torch.randn(*lead, *time, 2, dtype=torch.float64), state(), torch.randint(T + 1, (*lead, B)),
            torch.rand(*lead, *time) < 0.4, state())


@both_cells
@both_backends
@pytest.mark.parametrize("batch_first", (False, True))
def test_vmap_and_per_sample_gradients(cell, backend, batch_first):
    module, parameters, run = layer(cell, backend, batch_first=batch_first)
    data, loss = inputs(cell, V, batch_first=batch_first), loss_of(run)
    for function, dims in ((run, (None, 0, 0, 0, 0, 0)), (grad(loss), (None, 0, 0, 0, 0, 0)),
                           (grad(loss), (None, 0, None, 0, None, None))):
        arguments = parameters, *(value if dim == 0 else tree_map(lambda part: part[0], value)
                                  for value, dim in zip(data, dims[1:]))
        assert_all_close(vmap(function, in_dims=dims)(*arguments), loop(function, dims, *arguments))
    # Of vmapped losses, by autograd and by torch.func.
    total = vmap(lambda *data: loss(dict(module.named_parameters()), *data))(*data).sum()
    expected = tree_map(lambda value: value.sum(0), vmap(grad(loss), (None, 0, 0, 0, 0, 0))(parameters, *data))
    assert_all_close(torch.autograd.grad(total, list(module.parameters())), [*expected.values()])
    assert_all_close(grad(lambda p: vmap(lambda *data: loss(p, *data))(*data).sum())(parameters), expected)


@both_cells
@both_backends
def test_vmap_over_stacked_parameters(cell, backend):
    modules = [layer(cell, backend)[0] for _ in range(V)]
    _, _, run = layer(cell, backend)
    parameters, data = stack_module_state(modules)[0], inputs(cell, V)
    for dims in ((0, None, None, None, None, None), (0, 0, 0, None, None, None), (0,) * 6):
        arguments = parameters, *(value if dim == 0 else tree_map(lambda part: part[0], value)
                                  for value, dim in zip(data, dims[1:]))
        for function in (run, grad(loss_of(run))):
            assert_all_close(vmap(function, in_dims=dims)(*arguments), loop(function, dims, *arguments))


@both_cells
@both_backends
def test_nested_transforms(cell, backend):
    module, parameters, run = layer(cell, backend)
    data, loss = inputs(cell), loss_of(run)
    x, rest = data[0], data[1:]

    def of_x(x):
        return loss(parameters, x, *rest)

    def results_of_x(x):
        output, state = run(parameters, x, *rest)
        return output, *state

    assert_all_close(jacrev(results_of_x)(x), torch.autograd.functional.jacobian(results_of_x, x))
    expected = torch.autograd.functional.hessian(of_x, x)
    assert_all_close(jacrev(jacrev(of_x))(x), expected)
    both = torch.stack([torch.stack([x, 2 * x]), torch.stack([-x, x])])
    assert_all_close(vmap(vmap(grad(of_x)))(both), stacked([stacked([grad(of_x)(x) for x in row]) for row in both]))
    # Dead wrappers: the pull back is called outside, and differentiated by autograd.
    leaf = x.clone().requires_grad_()
    _, pull_back = vjp(of_x, leaf)
    gradient, = pull_back(torch.ones((), dtype=torch.float64))
    assert_all_close(torch.autograd.grad(gradient.sum(), leaf), (expected.sum((0, 1, 2)),))


@forward_mode
@both_cells
def test_forward_mode_is_exact_on_the_reference(cell):
    _, parameters, run = layer(cell, "reference")
    _, _, run_auto = layer(cell, "auto")
    data, loss = inputs(cell, V), loss_of(run)
    x, *rest = tree_map(lambda value: value[0], data)

    def of_x(x):
        return loss(parameters, x, *rest)

    # The inputs need no gradient: what would call `inference` must not lose the tangent.
    expected = (grad(of_x)(x) * x).sum()
    for run_of, context in ((run, torch.enable_grad), (run, torch.no_grad), (run_auto, torch.no_grad)):
        with context():
            assert_all_close(jvp(lambda x: loss_of(run_of)(parameters, x, *rest), (x,), (x,))[1], expected)
            with forward_ad.dual_level():
                value = loss_of(run_of)(parameters, forward_ad.make_dual(x, x), *rest)
                assert_all_close(forward_ad.unpack_dual(value).tangent, expected)
    gradient = grad(loss)(parameters, x, *rest)
    assert_all_close(jvp(lambda p: loss(p, x, *rest), (parameters,), (parameters,))[1],
                     sum((gradient[name] * value).sum() for name, value in parameters.items()))
    assert_all_close(jacfwd(lambda x: run(parameters, x, *rest))(x), jacrev(lambda x: run(parameters, x, *rest))(x))
    assert_all_close(hessian(of_x)(x), jacrev(jacrev(of_x))(x))

    def along_x(x, *rest):
        return jvp(lambda x: loss(parameters, x, *rest), (x,), (x,))[1]

    assert_all_close(vmap(along_x)(*data), loop(along_x, (0,) * 5, *data))


@forward_mode
@both_cells
@both_backends
def test_forward_mode_over_a_backward(cell, backend):
    _, parameters, run = layer(cell, backend)
    x, *rest = inputs(cell)
    x.requires_grad_()
    output = run(parameters, x, *rest)[0]
    weight, tangent = torch.randn_like(output), torch.randn_like(output)
    with forward_ad.dual_level():
        gradient, = torch.autograd.grad(output, x, forward_ad.make_dual(weight, tangent), retain_graph=True)
        got = forward_ad.unpack_dual(gradient).tangent
    assert_all_close(got, torch.autograd.grad(output, x, tangent))


@needs_cpu
@forward_mode
@both_cells
@pytest.mark.parametrize("checkpoint_every", (None, 2))
def test_forward_mode_on_a_named_backend_is_refused(cell, checkpoint_every):
    module = FusedxLSTM(2, 3, cell=cell, backend="cpu", checkpoint_every=checkpoint_every)
    x = torch.randn(T, B, 2)
    for context in (torch.enable_grad, torch.no_grad):
        with context(), pytest.raises(NotImplementedError, match="backend='cpu'.*use backend='reference'"):
            jvp(lambda x: module(x)[0], (x,), (x,))
        with context(), forward_ad.dual_level(), pytest.raises(NotImplementedError, match="backend='cpu'"):
            module(forward_ad.make_dual(x, x))


@both_cells
@both_backends
def test_vmap_beside_checkpoint_every(cell, backend):
    """Under a transform everything is kept: the results are the same."""
    module, parameters, run = layer(cell, backend, checkpoint_every=2)
    data = inputs(cell, V)
    gradients = vmap(grad(loss_of(run)), (None, 0, 0, 0, 0, 0))(parameters, *data)
    expected = loop(lambda *data: dict(zip(parameters, torch.autograd.grad(
        loss_of(run)(dict(module.named_parameters()), *data), list(module.parameters())))), (0,) * 5, *data)
    assert_all_close(gradients, expected)


@both_cells
@both_backends
@pytest.mark.parametrize("use_reentrant", (False, True))
def test_activation_checkpointing(cell, backend, use_reentrant):
    module = FusedxLSTM(2, H, 2, bidirectional=True, dropout=0.5, cell=cell, backend=backend)
    x, lengths, reset = torch.randn(T, B, 2), torch.tensor([4, 2]), torch.rand(T, B) < 0.4

    def function(x):
        output, state = module(x, lengths=lengths, reset=reset)
        return output, *state

    results = []
    for run in (function, lambda x: checkpoint(function, x, use_reentrant=use_reentrant)):
        torch.manual_seed(0)
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        values = run(leaf)
        sum(value.square().sum() for value in values).backward()
        results.append((*values, leaf.grad, *(parameter.grad for parameter in module.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@both_cells
@both_backends
def test_deterministic_algorithms(cell, backend):
    module, _, run = layer(cell, backend)
    data = inputs(cell)

    def gradients():
        return torch.autograd.grad(loss_of(run)(dict(module.named_parameters()), *data), list(module.parameters()))

    expected = gradients()
    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@both_cells
@both_backends
def test_inference_mode(cell, backend):
    module, parameters, run = layer(cell, backend)
    data = inputs(cell)
    expected = run(parameters, *data)
    with torch.inference_mode():
        got = run(dict(module.named_parameters()), *data)
        assert all(value.is_inference() for value in tree_leaves(got))
        assert_all_close(got, expected)


@both_cells
def test_a_saved_state_dict_loads_with_weights_only(cell, tmp_path):
    options = dict(bidirectional=True, cell=cell, layer_norm=True, num_heads=2)
    saved, loaded = (FusedxLSTM(2, H, 2, **options) for _ in range(2))
    torch.save(saved.state_dict(), tmp_path / "layer.pt")
    loaded.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    x = torch.randn(T, B, 2)
    assert torch.equal(loaded(x)[0], saved(x)[0])
