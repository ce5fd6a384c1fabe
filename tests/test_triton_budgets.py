"""What the shipped kernels need of a GPU, compiled for it without one: shared memory, spills, matrix instructions."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")
from gpu_without_gpu.kernels import TESTED, calls, needs, over_budget

ids = ["-".join((case.target, str(case.dtype).removeprefix("torch."), case.cell, str(case.D), *(
    name for name, there in (("resets", case.resets), (f"B{case.B}", case.B > 16), ("tf32", case.tf32),
                             (f"I{case.I}", case.I)) if there)))
    for case in TESTED]


@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
@pytest.mark.parametrize("case", TESTED, ids=ids)
def test_a_kernel_stays_within_the_device(case, backward):
    assert over_budget(case, backward, needs(case, backward)[2]) == []


@pytest.mark.parametrize("need, words", (({"shared": 1 << 20}, "shared memory"), ({"stack": 8}, "spills"),
                                         ({"mma": 0}, "matrix instruction"), ({"tmem": 513}, "tensor memory")))
def test_a_kernel_over_budget_shows(need, words):
    fine = {"shared": 0, "tmem": 512, "registers": 0, "stack": 0, "mma": 1}
    assert over_budget(TESTED[0], False, fine) == []
    assert words in over_budget(TESTED[0], False, fine | need)[0]


def test_steps_and_sequences_are_no_constants_of_a_kernel():
    """Another length or number of sequences must not compile another kernel."""
    for kernel, arguments, _ in calls(TESTED[0]):
        numbers = {parameter.name for parameter in kernel.params
                   if isinstance(arguments[parameter.name], int) and not parameter.is_constexpr}
        assert {"T", "B", "P", "K", "N", "time_stride", "batch_stride", "first_step", "end_step", "slices"} <= numbers
        assert all(parameter.do_not_specialize for parameter in kernel.params if parameter.name in numbers)
