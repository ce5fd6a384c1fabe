"""The CUDA backend's choice of programs: a pure function, so no GPU is needed."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from xlstm_fused.backends import refuses
from xlstm_fused.backends.cuda import plan as planning
from xlstm_fused.backends.cuda.plan import STEPS, Device, plans, takes_input

A100 = Device((8, 0), 108, 163 << 10)
H100 = Device((9, 0), 132, 227 << 10)
B200 = Device((10, 0), 148, 227 << 10)
CSRC = Path(__file__).parents[1] / "csrc/cuda"


def best(D, heads=1, B=16, itemsize=2, device=H100, backward=False):
    return plans(D, heads, B, itemsize, device, backward)[0]


@pytest.mark.parametrize("itemsize, D, forward, backward", (
    (2, 1, 1, 1), (2, 64, 1, 1), (2, 128, 1, 1), (2, 256, 4, 4), (2, 512, 8, 8),
    (4, 64, 1, 1), (4, 128, 2, 2), (4, 256, 4, 4), (4, 384, 8, 12)))
def test_as_few_programs_as_hold_the_matrix(itemsize, D, forward, backward):
    for is_backward, programs in enumerate((forward, backward)):
        plan = best(D, itemsize=itemsize, backward=bool(is_backward))
        assert plan.programs == programs and plan.resident
        fewer = [each for each in plans(D, 1, 16, itemsize, H100, bool(is_backward)) if each.programs < programs]
        assert not any(each.resident for each in fewer)


@pytest.mark.parametrize("device, D, itemsize", (
    (H100, 512, 4), (H100, 768, 2), (H100, 768, 4), (H100, 1024, 2), (H100, 1536, 2), (A100, 256, 2), (A100, 768, 2)))
def test_a_grid_where_no_cluster_of_eight_holds_the_matrix(device, D, itemsize):
    for backward in (False, True):
        plan = best(D, itemsize=itemsize, device=device, backward=backward)
        assert plan.exchange == "grid" and plan.resident
        assert not any(each.resident and each.programs < plan.programs and (each.exchange, each.programs) != (
            "cluster", 16) for each in plans(D, 1, 16, itemsize, device, backward))


def test_a_cluster_of_sixteen_only_where_no_grid_has_room():
    """Unless the driver refuses the grid, as where others use a part of the device."""
    found = [(each.exchange, each.programs) for each in plans(768, 1, 16, 2, H100, False) if each.resident]
    assert found[-1] == ("cluster", 16) and {exchange for exchange, _ in found[:-1]} == {"grid"}


@pytest.mark.parametrize("device, D, itemsize", ((H100, 2048, 4), (A100, 2048, 2), (A100, 1536, 4)))
def test_as_many_as_there_can_be_where_none_hold_it(device, D, itemsize):
    for backward in (False, True):
        plan = best(D, itemsize=itemsize, device=device, backward=backward)
        most = max(each.programs for each in plans(D, 1, 16, itemsize, device, backward))
        assert not plan.resident and (plan.exchange, plan.programs) == ("grid", most)


@pytest.mark.parametrize("device, D, heads, B, groups", (
    (H100, 1024, 1, 16, 2), (H100, 1024, 1, 1000, 3), (H100, 1024, 2, 1, 2), (H100, 2048, 2, 64, 1),
    (A100, 256, 1, 1000, 27), (A100, 256, 3, 8, 3)))
def test_as_many_groups_as_have_room_and_work(device, D, heads, B, groups):
    assert [each.groups for each in plans(D, heads, B, 2, device, False) if each.exchange == "grid"][0] == groups


@pytest.mark.parametrize("device", (A100, H100, B200))
@pytest.mark.parametrize("backward", (False, True))
@pytest.mark.parametrize("itemsize", (2, 4))
def test_every_plan_covers_the_problem_and_fits(device, backward, itemsize):
    for D in (*range(1, 140, 3), 192, 250, 256, 512, 513, 768, 1000, 1024, 1025, 2048):
        for B, heads in ((1, 1), (16, 2), (64, 12), (1000, 1)):
            for plan in set(plans(D, heads, B, itemsize, device, backward)) - {STEPS}:
                inner = 4 * plan.units if backward else D
                assert plan.programs * plan.units >= D > (plan.units - 8) * plan.programs
                assert plan.units % 8 == 0 and plan.units // 8 <= plan.warps <= planning.WARPS[plan.exchange]
                assert plan.warps * 8 == plan.units or plan.exchange == "grid"
                assert plan.chunks * plan.splits * 64 >= inner * itemsize
                assert plan.row_bytes % 128 == 64 and plan.row_bytes >= plan.chunks * plan.splits * 64
                assert backward or plan.row_bytes >= plan.programs * plan.units * itemsize
                assert plan.shared_bytes <= device.shared_limit
                # What a barrier can count of bytes that peers send in one phase.
                assert plan.programs * plan.splits * plan.tiles * plan.units * 8 * 4 < 1 << 20
                assert device is not A100 or plan.exchange != "cluster"
                assert (plan.words > 0) == (plan.exchange == "grid")
                assert plan.groups * plan.programs <= device.processors if plan.words else plan.groups == 1
                assert plan.groups <= max(1, heads * -(-B // 8))


def test_two_tiles_where_programs_would_take_turns():
    assert best(512, B=64).tiles == 1
    assert best(512, heads=2, B=128).tiles == 2


@pytest.mark.parametrize("device, itemsize, inputs, D, taken", (
    (A100, 2, 32, 128, True), (A100, 2, 1, 129, False), (A100, 4, 16, 96, True), (A100, 4, 17, 96, False),
    (A100, 4, 32, 80, True), (H100, 2, 32, 512, True), (H100, 2, 1, 513, False), (H100, 4, 32, 320, True),
    (H100, 4, 1, 321, False), (H100, 4, 1, 120, False),
    (H100, 2, 33, 64, False), (H100, 2, 0, 64, False), (H100, 2, 1, 2049, False)))
def test_an_input_is_taken_where_its_weights_fit_beside_the_matrix(device, itemsize, inputs, D, taken):
    assert takes_input(D, inputs, itemsize, device) == taken


@pytest.mark.parametrize("device", (A100, H100, B200))
@pytest.mark.parametrize("itemsize", (2, 4))
def test_plans_that_take_an_input(device, itemsize):
    """For every batch: as many programs as without, all of R on chip, and room for W_ih and the biases."""
    for D in (*range(1, 140, 3), 192, 250, 256, 320, 384, 512):
        for inputs in (1, 17, 32):
            if not takes_input(D, inputs, itemsize, device):
                continue
            for B, heads in ((1, 1), (16, 2), (64, 12), (300, 2), (1000, 1)):
                plan, other = (plans(D, heads, B, itemsize, device, False, given)[0] for given in (inputs, 0))
                assert (plan.exchange, plan.programs, plan.tiles) == (other.exchange, other.programs, other.tiles)
                assert plan.resident and plan.exchange != "grid" and plan.shared_bytes <= device.shared_limit
                input_bytes = plan.warps * 32 * (-(-inputs * itemsize // 64) * 64 + 16)
                assert plan.shared_bytes == other.shared_bytes + input_bytes


def test_the_kernels_take_as_many_features_as_the_plan_counts_on():
    source = re.search(r"kInputs = (\d+);", (CSRC / "plan.h").read_text())[1]
    assert int(source) == planning.INPUTS


def test_what_no_grid_can_take_is_done_in_steps():
    """Large heads, what does not fit in shared memory, too few processors; else steps are the last resort."""
    assert plans(2049, 1, 1, 2, H100, False) == plans(2049, 1, 1, 2, A100, True) == (STEPS,)
    assert plans(2048, 1, 1, 4, A100._replace(shared_limit=99 << 10), False) == (STEPS,)
    assert plans(1025, 1, 1, 2, H100._replace(processors=16), False) == (STEPS,)
    assert plans(2048, 1, 1, 4, H100, False)[-1] == plans(64, 1, 1, 2, A100, True)[-1] == STEPS
    assert STEPS not in plans(64, 1, 1, 2, A100, False, inputs=1) and plans(2049, 1, 1, 2, H100, False, inputs=1) == ()


@pytest.mark.parametrize("D, B, heads, forward, backward", (
    (2048, 16, 1, "grid", "grid"), (2048, 64, 1, "grid", "steps"), (2048, 128, 1, "steps", "steps"),
    (1024, 64, 1, "grid", "grid"), (1024, 128, 1, "grid", "steps"), (1024, 256, 1, "steps", "steps"),
    (1024, 64, 2, "grid", "steps"), (768, 64, 1, "grid", "grid"), (256, 512, 1, "cluster", "cluster"),
    (64, 10_000, 8, "alone", "alone")))
def test_steps_where_a_grid_takes_longer_by_the_models(D, B, heads, forward, backward):
    """Never in float32, whose library products do not run on the tensor cores."""
    for is_backward, exchange in enumerate((forward, backward)):
        assert best(D, heads, B, backward=bool(is_backward)).exchange == exchange
        assert best(D, heads, B, itemsize=4, backward=bool(is_backward)).exchange != "steps"


def test_the_kernels_have_the_registers_that_the_plan_counts_on():
    text = re.sub(r"\s+", " ", (CSRC / "kernels.cuh").read_text())
    body = re.search(r"int registers\(.*?\) \{(.*?) \}", text)[1]
    alone, grid, cluster = re.findall(r"return (.*?);", body)
    assert "alone) return" in body and "grid) return" in body
    sources = {"alone": alone, "grid": grid, "cluster": cluster}
    for (exchange, tiles, backward), count in planning.REGISTERS.items():
        number = r"(\(.+?\)|\d+)"
        branches = re.fullmatch(rf"backward \? {number} : {number}", sources[exchange]).groups()
        numbers = [int(each) for each in re.findall(r"(?<!== )\b\d+", branches[not backward])]
        assert numbers[min(tiles, len(numbers)) - 1] == count


def test_helpers_fetch_where_there_is_much_to_fetch():
    small, large = (planning.plan_for("grid", -(-D // 16), 1, D, 2, H100, False) for D in (48, 1024))
    assert small.warps == 2 and large.warps == planning.WARPS["grid"]
    source = re.search(r"kPairsAtOnce = (\d+);", (CSRC / "hidden_exchange.cuh").read_text())[1]
    assert int(source) * 32 == planning.PAIRS


def test_refusals():
    assert refuses("cuda", "cpu", torch.float32, "lstm") == "it runs on NVIDIA GPUs, not on cpu devices"
    assert "not float64" in refuses("cuda", "cuda", torch.float64, "lstm")
    assert refuses("cuda", "cuda", torch.float32, "lstm") or torch.cuda.is_available()


def test_a_missing_extension_says_why(monkeypatch, tmp_path):
    cuda = importlib.import_module("xlstm_fused.backends.cuda")
    monkeypatch.setattr(cuda, "_cuda", None)
    monkeypatch.setattr(cuda, "_import_error", "no such thing", raising=False)
    monkeypatch.setattr(cuda, "__file__", str(tmp_path / "backends/cuda/__init__.py"))
    assert cuda._why_missing() == "its extension does not load: no such thing"
    (tmp_path / "_build.json").write_text('{"cuda": "nvcc, the compiler of CUDA, was not found"}')
    cuda._missing.cache_clear()
    assert refuses("cuda", "cuda", torch.float32, "lstm") == "nvcc, the compiler of CUDA, was not found"
    cuda._missing.cache_clear()
