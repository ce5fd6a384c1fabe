"""What the CUDA kernels of the built extension need of a GPU: ``python tests/gpu_without_gpu/cuda_kernels.py``."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from xlstm_fused.backends.cuda import _cuda
from xlstm_fused.backends.cuda import plan as planning

DEVICES = {"sm_80": planning.Device((8, 0), 108, 163 << 10), "sm_90": planning.Device((9, 0), 132, 227 << 10),
           "sm_100": planning.Device((10, 0), 148, 227 << 10)}
"""What the choice of a plan is told: A100, H100, B200."""
KINDS = {"BFloat16": "bfloat16", "Half": "float16", "Float32": "float32", "TensorFloat32": "tf32"}
ITEMSIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "tf32": 4}
SIZES = (64, 128, 256, 512, 768, 1024, 2048, 4096)


class Instance(NamedTuple):
    """One kernel in the extension."""

    arch: str
    cell: str
    kind: str
    backward: bool
    exchange: str
    tiles: int


class Needs(NamedTuple):
    """``stack`` in bytes: what registers spill to; none may have any."""

    registers: int
    stack: int


def cuobjdump_path():
    """Where cuobjdump is, or None: on the path, in ``CUDA_HOME``, in CUDA's usual place, or in triton."""
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin/cuobjdump"
    found = shutil.which("cuobjdump") or (str(usual) if usual.exists() else None)
    if found is None and importlib.util.find_spec("triton") is not None:
        from triton import knobs

        found = knobs.nvidia.cuobjdump.path
    return found


_KERNEL = re.compile(r"Function \S*(?:recurrence|step)_(fwd|bwd)_kernelINS_\d+(\w+?)ENS\d?_\d+"
                     r"(BFloat16|Half|TensorFloat32|Float32)E(?:Li(\d+)ELNS\w?_8ExchangeE(\d)E)?")


def parse(text):
    """``{Instance: Needs}`` of what cuobjdump prints."""
    found, arch, instance = {}, None, None
    for line in text.splitlines():
        if match := re.search(r"arch = (sm_\d+)", line):
            arch = match[1]
        elif match := _KERNEL.search(line):
            name, cell, kind, tiles, exchange = match.groups()
            exchange = tuple(planning.WARPS)[int(exchange)] if exchange else "steps"
            instance = Instance(arch, cell.lower(), KINDS[kind], name == "bwd", exchange, int(tiles or 1))
        elif instance and (match := re.search(r"REG:(\d+) STACK:(\d+)", line)):
            found[instance] = Needs(*map(int, match.groups()))
            instance = None
    return found


def shipped():
    """``{Instance: Needs}`` of the built extension."""
    return parse(subprocess.run([cuobjdump_path(), "--dump-resource-usage", _cuda.__file__], capture_output=True,
                                text=True, check=True).stdout)


def over_budget(instance, needs):
    """What a GPU would refuse or regret, in words."""
    limit = 65536 // (32 * planning.WARPS.get(instance.exchange, planning.STEPS.warps))
    return [words for words, wrong in (
        (f"{needs.registers} registers, {limit} are there", needs.registers > limit),
        (f"{needs.stack} bytes of spills", needs.stack > 0)) if wrong]


def main():
    if _cuda is None or cuobjdump_path() is None:
        print("CUDA kernels: none, since the extension is not built or there is no cuobjdump")
        return
    instances = shipped()
    print(f"{'target':7} {'cell':6} {'kind':9} {'pass':4} {'D':>5} {'exchange':8} {'programs':>8} {'tiles':>5} "
          f"{'warps':>5} {'shared':>7} {'of':>7} {'on chip':>7} {'registers':>9} {'spills':>6}")
    for arch, cell, kind, backward in sorted({each[:4] for each in instances}):
        for D in SIZES:
            for plan in planning.plans(D, 1, 16, ITEMSIZES[kind], DEVICES[arch], backward)[:1]:
                needs = instances[Instance(arch, cell, kind, backward, plan.exchange, plan.tiles)]
                print(f"{arch:7} {cell:6} {kind:9} {'bwd' if backward else 'fwd':4} {D:>5} {plan.exchange:8} "
                      f"{plan.programs:>8} {plan.tiles:>5} {plan.warps:>5} {plan.shared_bytes:>7} "
                      f"{DEVICES[arch].shared_limit:>7} {'yes' if plan.resident else 'no':>7} {needs.registers:>9} "
                      f"{needs.stack:>6}")
    failures = [f"{instance}: {words}" for instance, needs in instances.items()
                for words in over_budget(instance, needs)]
    sys.exit("\n".join(failures) or None)


if __name__ == "__main__":
    main()
