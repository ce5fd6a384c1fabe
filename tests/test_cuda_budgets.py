"""What the shipped CUDA kernels need of a GPU, read out of the built extension."""

import pytest
from gpu_without_gpu.cuda_kernels import Instance, Needs, cuobjdump_path, over_budget, parse, shipped

from xlstm_fused.backends.cuda import _cuda
from xlstm_fused.backends.cuda.plan import REGISTERS
from xlstm_fused.cells import CELLS

LINE = " Function _ZN11xlstm_fused4cuda21recurrence_bwd_kernelINS_5SlstmENS0_13TensorFloat32ELi2ELNS0_8ExchangeE1EEEv:"


@pytest.mark.skipif(_cuda is None or cuobjdump_path() is None, reason="no CUDA extension, or no cuobjdump to read it")
def test_no_instance_spills():
    instances = shipped()
    kinds = {each.kind for each in instances}
    for arch in _cuda.archs.split():
        for exchange, tiles, backward in (*REGISTERS, ("steps", 1, False), ("steps", 1, True)):
            if exchange == "cluster" and arch == "80":
                continue
            for cell in CELLS:
                assert all(Instance(f"sm_{arch}", cell, kind, backward, exchange, tiles) in instances for kind in kinds)
    assert kinds == {"bfloat16", "float16", "float32", "tf32"}
    assert [f"{instance}: {words}" for instance, needs in instances.items()
            for words in over_budget(instance, needs)] == []


def test_a_kernel_over_budget_shows():
    text = f"arch = sm_90\n{LINE}\n  REG:255 STACK:8 SHARED:0 LOCAL:0\n"
    instance = Instance("sm_90", "slstm", "tf32", True, "cluster", 2)
    assert parse(text) == {instance: Needs(255, 8)}
    assert over_budget(instance, Needs(255, 8)) == ["8 bytes of spills"]
    assert over_budget(instance._replace(exchange="alone"), Needs(129, 0)) == ["129 registers, 128 are there"]
    assert over_budget(instance, Needs(255, 0)) == []
