"""The CPU kernels against the reference: every instruction set of this processor, dtype, layout and direction."""

import pytest
import torch
from problems import LAYOUTS, RESETS, Problem
from test_reference import through_autograd, through_ops
from tolerances import assert_as_good_as, assert_close

from xlstm_fused.backends import backends, cpu
from xlstm_fused.cells import CELLS
from xlstm_fused.rows import Rows

ISAS = cpu._cpu.isas() if backends()["cpu"].ready else []


def through_cpu(tensors, problem):
    return through_ops(tensors, problem, "cpu")


def test_the_cpu_backend_is_built():
    assert backends()["cpu"].ready, backends()["cpu"].reason


def forced(isas):
    @pytest.fixture(params=isas)
    def fixture(request):
        cpu.forced_isa = request.param
        yield
        cpu.forced_isa = ""

    return fixture


# avx512bf16 has kernels for bfloat16 alone, avx512amx for float32 too; in other dtypes they stand for avx512.
isa, isa_of_16_bit = forced([isa for isa in ISAS if isa != "avx512bf16"]), forced(ISAS)


def assert_true(problem, run=through_cpu, reference=through_autograd):
    """Values and gradients of the kernels against the reference in float64."""
    expected_values, expected = problem.to(torch.float64).run(reference)
    values, gradients = problem.run(run)
    for name, value in expected_values.items():
        assert_close(values[name], value, name)
    for name, gradient in expected.items():
        assert gradients[name].dtype == problem.tensors[name].dtype
        # float32 carries c, n and m, whose gradients are compared as such whatever the storage.
        assert_close(gradients[name], gradient, f"gradient of {name}")


def assert_as_good_as_the_reference(problem, run=through_cpu, reference=through_autograd):
    """Values and gradients of 16-bit kernels."""
    # The raw c, n and m of slstm have a kink where i == log f + m, and 16-bit rounding moves values across it. h does
    # not depend on m', so gradients through h have none.
    for index in (2, 4):
        problem.cotangents[index].zero_()
    truth_values, truth = problem.to(torch.float64).run(reference)
    usual_values, usual = problem.run(reference)
    values, gradients = problem.run(run)
    for name in values:
        assert_as_good_as(values[name], usual_values[name], truth_values[name], name)
    for name in gradients:
        assert_as_good_as(gradients[name], usual[name], truth[name], f"gradient of {name}")


def same_by_every_plan(problem, plans, run=through_cpu):
    """The values, which are the same bits by all of ``plans``, as are the gradients."""
    results = []
    for plan in plans:
        cpu.forced_plan = plan
        results.append(problem.run(run))
    (values, gradients), *others = results
    for other_values, other_gradients in others:
        assert all(torch.equal(value, values[name]) for name, value in other_values.items())
        # The weights' are products over all rows, made by torch.
        assert all(torch.equal(value, gradients[name]) for name, value in other_gradients.items()
                   if name not in ("weight_hh", "weight_ih", "bias"))
    return values


@pytest.mark.usefixtures("isa", "poisoned_memory")
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
@pytest.mark.parametrize("K, N, D, reverse, masked", ((1, 1, 5, False, False), (1, 2, 33, True, True),
                                                      (2, 3, 8, False, True), (1, 1, 20, True, False)))
def test_values_and_gradients(cell, layout, reset, dtype, K, N, D, reverse, masked):
    problem = Problem.random(cell, layout, K, N, D, reverse, reset, masked, initial=masked, dtype=dtype)
    assert_true(problem)


@pytest.mark.usefixtures("isa_of_16_bit", "poisoned_memory")
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "no sequence"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_16_bit_is_as_good_as_the_reference(cell, layout, dtype, masked):
    problem = Problem.random(cell, layout, 2, 2, 13, masked=masked, dtype=dtype)
    assert_as_good_as_the_reference(problem)


@pytest.fixture
def forced_plan():
    yield
    cpu.forced_plan = None


@pytest.mark.usefixtures("isa_of_16_bit", "forced_plan")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("cell", CELLS)
def test_bitwise_the_same_however_the_work_is_split(cell, dtype):
    """Threads over units of a head (a team), over tiles of the batch, and both; and a sequence alone in its batch."""
    problem = Problem.random(cell, "lengths", 2, 1, 37, reset="per sequence", dtype=dtype)
    values = same_by_every_plan(problem, ((1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 2, 2), (4, 2, 5), (2, 1, 3), (3, 1, 5)))

    alone = Problem.random(cell, Rows.dense(7, 1, False), 2, 1, 37, dtype=dtype)
    alone.reset = problem.reset[1::5].clone()
    alone.tensors = {name: value[1::5].clone() if name == "wx" else value if name == "weight_hh" else
                     value[..., 1:2, :, :].clone() for name, value in problem.tensors.items()}
    cpu.forced_plan = None
    assert torch.equal(alone.run(through_cpu)[0]["output"], values["output"][1::5])
    first = Problem.random(cell, Rows.dense(1, 1, False), 2, 1, 37, dtype=dtype)
    first.reset = problem.reset[1:2].clone()
    first.tensors = {name: value[:1].clone() if name == "wx" else value for name, value in alone.tensors.items()}
    # The second direction begins at the other end.
    assert torch.equal(first.run(through_cpu)[0]["output"][:, 0], values["output"][1:2, 0])


def numbers_of_bfloat16(problem):
    """The recurrent matrix rounded to bfloat16, which a tile of few rows keeps as such and one of many does not."""
    problem.tensors["weight_hh"] = problem.tensors["weight_hh"].bfloat16().to(problem.tensors["weight_hh"].dtype)
    return problem


@pytest.mark.usefixtures("isa_of_16_bit", "forced_plan")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("D", (5, 70, 128))
@pytest.mark.parametrize("cell", CELLS)
def test_a_matrix_kept_in_bfloat16_changes_no_bit(cell, D, dtype):
    problem = numbers_of_bfloat16(Problem.random(cell, Rows.dense(4, 11, False), 2, 1, D, dtype=dtype))
    same_by_every_plan(problem, ((1, 1, 1), (1, 1, 2), (1, 1, 11), (2, 1, 6)))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("where", (0, 1000, -1))
@pytest.mark.parametrize("cell", CELLS)
def test_a_matrix_with_one_number_that_is_no_bfloat16(cell, where):
    problem = numbers_of_bfloat16(Problem.random(cell, "time-major", 1, 1, 23, dtype=torch.float32))
    problem.tensors["weight_hh"].view(-1)[where] = 1 + 2**-9
    assert_true(problem)


@pytest.mark.usefixtures("isa", "forced_plan")
def test_a_plan_that_cannot_be_carried_out_is_refused():
    problem = Problem.random(dtype=torch.float32)
    for plan in ((0, 1, 1), (3, 2, 1), (1, 1, 6), (64, 64, 1)):
        cpu.forced_plan = plan
        with pytest.raises(ValueError, match="plan: "):
            problem.run(through_cpu)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cell", CELLS)
def test_extreme_gates_are_finite_and_stay_in_their_row(cell):
    """In float32 finite; in float64, where 1e4 + R h still has digits to compare, equal to the reference."""
    problem = Problem.random(cell, "time-major", 1, 1, 9, initial=False)
    calm, _ = problem.run(through_cpu)
    wx = problem.tensors["wx"] = problem.tensors["wx"].clone()
    wx[0::5] = 1e4 * wx[0::5].sign()
    wx[1::5, :, 0] = -120
    values, gradients = problem.run(through_cpu)
    expected_values, expected = problem.run(through_autograd)
    for name, value in {**values, **gradients}.items():
        assert_close(value, {**expected_values, **expected}[name], name)
    for b in (2, 3, 4):
        assert torch.equal(values["output"][b::5], calm["output"][b::5])
    for results in problem.to(torch.float32).run(through_cpu):
        assert all(value.isfinite().all() for value in results.values())


@pytest.mark.usefixtures("isa")
def test_activations_are_within_the_ulps_they_promise():
    """The float functions, seen through the cells with R = 0; the promise is in csrc/cpu/vector_math.h."""
    D = 4096
    x = torch.cat([torch.randn(D // 2) * 4, torch.linspace(-90, 90, D // 4), torch.randn(D // 4) * 1e-3])
    big, zero = torch.full((D,), 200.0), torch.zeros(D)

    def states(cell, gates, c, n=None, m=None):
        wx = torch.stack(gates).view(1, 1, 4, D, 1)
        s0 = torch.stack([value for value in (c, n, m) if value is not None]).view(-1, 1, 1, D, 1)
        result = cpu.inference(wx, torch.zeros(1, 4, D, 1, 1), None, s0, None, None, None, False, None,
                               Rows.dense(1, 1, False), cell, False)
        return result[0].view(D), result[2].view(-1, D)

    def ulps(got, want, least=2.0**-126):
        spacing = torch.exp2(torch.floor(torch.log2(want.abs().clamp(min=least))) - 23)
        return ((got.double() - want) / spacing).abs().max().item()

    wide = x.double()
    tanh = states("lstm", (big, -big, x, zero), zero)[1][0]
    sigmoid = states("lstm", (-big, x, zero, zero), zero + 1)[1][0]
    log_sigmoid = states("slstm", (-big, x, zero, zero), zero, zero + 1, zero)[1][2]
    below = -x.abs()
    exp = states("slstm", (below, big, big, zero), zero, zero + 1, zero)[1][0]
    assert ulps(tanh, wide.tanh()) <= 2
    assert ulps(sigmoid, wide.sigmoid()) <= 2
    assert ulps(log_sigmoid, torch.nn.functional.logsigmoid(wide)) <= 2
    assert ulps(exp, below.double().exp()) <= 1
