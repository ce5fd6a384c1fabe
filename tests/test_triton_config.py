"""The tile choice of the Triton backend: what it promises for every size and device, and its refusals."""

import importlib
import importlib.util
import itertools

import pytest
import torch

from xlstm_fused.backends import backends, refuses
from xlstm_fused.backends.triton import config

A100, H100, CONSUMER = (config.Device(*each) for each in ((108, 163 << 10), (132, 227 << 10), (170, 99 << 10)))
MI300 = config.Device(304, 64 << 10, 64)

everything = pytest.mark.parametrize("device", (A100, H100, CONSUMER, MI300))


def plans(device):
    """Every choice over sizes from 1 to 8192, odd ones included, with its arguments."""
    sizes = (1, 5, 16, 17, 64, 65, 100, 128, 129, 256, 768, 1000, 1024, 2048, 4096, 8192)
    for D, heads, B, itemsize, backward in itertools.product(sizes, (1, 2, 12), (1, 16, 33, 64, 1000), (2, 4), (0, 1)):
        yield config.plan(D, heads, B, itemsize, device, bool(backward)), D, heads, B, itemsize


@everything
def test_programs_cover_the_head_and_fit_the_device(device):
    for plan, D, heads, B, itemsize in plans(device):
        assert plan.slices * plan.BLOCK_U >= D > (plan.slices - 1) * plan.BLOCK_U
        assert all(size >= 16 and size & (size - 1) == 0 for size in (plan.BLOCK_B, plan.BLOCK_U, plan.BLOCK_K))
        assert plan.num_warps * device.warp_size <= 512
        if plan.resident:
            assert config.GATES * D * plan.BLOCK_U * itemsize < device.shared_limit
            assert plan.slices == 1 or config.GATES * D * plan.BLOCK_U <= config.UNROLLED[itemsize]
        # Programs that wait for each other must all be resident: one for each multiprocessor always is.
        if plan.barrier:
            assert plan.slices * -(-B // plan.BLOCK_B) * heads <= device.processors
        assert plan.slices > 1 or (plan.resident and not plan.barrier)


@everything
def test_the_batch_does_not_change_the_programs_of_a_head_that_fits_one(device):
    """No compile per batch size."""
    assert len({config.plan(64, 1, B, 2, device, False) for B in range(1, 500, 7)}) == 1


def test_the_matrix_stays_on_chip_as_long_as_it_fits():
    assert [config.plan(D, 1, 16, 2, H100, False)[1:6] for D in (64, 128, 256, 512, 1024, 2048)] == [
        (64, 64, 1, True, False), (128, 128, 1, True, False), (64, 128, 4, True, True), (32, 128, 16, True, True),
        (16, 64, 64, True, True), (32, 64, 64, False, True)]
    assert [config.plan(D, 1, 16, 2, H100, True)[1:6] for D in (64, 128, 256, 768, 1024)] == [
        (64, 64, 1, True, False), (128, 128, 1, True, False), (64, 128, 4, True, True), (32, 128, 24, True, True),
        (32, 64, 32, False, True)]


def test_a_matrix_of_float32_streams_where_its_unrolled_product_takes_long_to_compile():
    assert [config.plan(D, 1, 16, 4, H100, False)[3:6] for D in (64, 128, 256, 512)] == [
        (1, True, False), (2, True, True), (8, True, True), (16, False, True)]
    assert [config.plan(D, 1, 16, 4, H100, True)[3:6] for D in (64, 128)] == [(1, True, False), (4, False, True)]


def test_narrow_inputs_to_whole_heads_are_multiplied_in_the_kernel():
    """In 16 bits, where both matrices fit into a program's memory."""
    assert [config.takes_input(64, inputs, 2, H100) for inputs in (0, 1, 32, 33, 512)] == [
        False, True, True, False, False]
    assert [config.takes_input(D, 32, 2, H100) for D in (1, 128, 129, 512)] == [True, True, False, False]
    assert [config.takes_input(64, inputs, 2, MI300) for inputs in (16, 17)] == [True, False]
    assert not config.takes_input(128, 16, 2, CONSUMER)
    assert not any(config.takes_input(D, 16, 4, H100) for D in (16, 64))


@everything
def test_no_matrix_of_an_input_takes_the_room_of_the_recurrent_one(device):
    for D, inputs in itertools.product((1, 16, 33, 64, 65, 128, 200), range(40)):
        if config.takes_input(D, inputs, 2, device):
            plan = config.plan(D, 1, 16, 2, device, False)
            assert plan.slices == 1
            rows = plan.BLOCK_K + config.padded(inputs)
            assert config.GATES * rows * plan.BLOCK_U * 2 + config.RESERVE <= device.shared_limit


def test_no_registers_are_saved_for_a_second_program_that_has_no_room():
    def most(D, itemsize, device):
        return config.registers(config.plan(D, 1, 16, itemsize, device, True), itemsize, device)

    assert [most(D, 2, H100) for D in (64, 128, 256)] == [None, 255, None]
    assert [most(64, 4, device) for device in (H100, CONSUMER, MI300)] == [None, 128, None]


def test_a_grid_that_does_not_fit_runs_step_by_step():
    plan = config.plan(2048, 2, 512, 2, H100, False)
    assert plan.slices > 1 and not plan.barrier


def test_refusals_say_why(monkeypatch):
    assert refuses("triton", "cpu", torch.float32, "lstm") == "it runs on GPUs, not on cpu devices"
    assert "not float64" in refuses("triton", "cuda", torch.float64, "lstm")
    assert "no cell 'elman'" in refuses("triton", "cuda", torch.float32, "elman")
    triton = importlib.import_module("xlstm_fused.backends.triton")
    triton._missing.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in refuses("triton", "cuda", torch.float32, "lstm")
    triton._missing.cache_clear()
    monkeypatch.undo()
    row = backends()["triton"]
    assert row.ready or row.reason in refuses("triton", "cuda", torch.float32, "lstm")
