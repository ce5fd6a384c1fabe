"""Compiling Triton kernels for GPUs that are not there, and what the result needs of them."""

import functools
import re
import resource
import subprocess
import tempfile
import warnings

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from xlstm_fused.backends.triton.config import Device

TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), Device(108, 163 << 10)),
    "sm_90": (GPUTarget("cuda", 90, 32), Device(132, 227 << 10)),
    "sm_100": (GPUTarget("cuda", 100, 32), Device(148, 227 << 10)),
    "sm_120": (GPUTarget("cuda", 120, 32), Device(170, 99 << 10)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), Device(304, 64 << 10, 64)),
}
"""Target and what the tile choice is told of it: A100, H100, B200, RTX 5090, MI300X."""

_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32",
             torch.int64: "*i64", torch.uint8: "*u8"}


def signature(kernel, arguments):
    """``(types, constants)`` of a call with these arguments, by name: what the JIT would specialise on."""
    types, constants = {}, {}
    for parameter in kernel.params:
        value = arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            types[parameter.name] = _POINTERS[value.dtype]
        elif value is None or parameter.is_constexpr:
            types[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            types[parameter.name] = "i32"
    return types, constants


def compiled(kernel, arguments, target, **options):
    """The kernel for this call, compiled for ``target``; Triton's cache keeps it between runs."""
    types, constants = signature(kernel, arguments)
    return _compiled(kernel, tuple(types.items()), tuple(constants.items()), target, tuple(options.items()))


@functools.cache
def _compiled(kernel, types, constants, target, options):
    # Tensors of torch begin at multiples of 16 bytes.
    aligned = {(index,): [["tt.divisibility", 16]] for index, (_, kind) in enumerate(types) if kind[0] == "*"}
    source = ASTSource(kernel, dict(types), dict(constants), aligned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compile(source, target=TARGETS[target][0], options=dict(options))


def cpu_seconds():
    """CPU time of this process so far, and of the assemblers that it has run."""
    return sum(usage.ru_utime + usage.ru_stime
               for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def resources(binary):
    """What a compiled kernel takes: bytes of shared memory, columns of tensor memory, registers, bytes of stack
    (spills), matrix instructions."""
    needs = {"shared": binary.metadata.shared, "tmem": getattr(binary.metadata, "tmem_size", 0)}
    if "cubin" not in binary.asm:
        text = binary.asm["amdgcn"]
        number = {key: int(re.search(rf"\.{key}:?\s+(\d+)", text)[1])
                  for key in ("vgpr_count", "private_segment_fixed_size")}
        return needs | {"registers": number["vgpr_count"], "stack": number["private_segment_fixed_size"],
                        "mma": len(re.findall(r"\bv_mfma", text))}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.check_output([knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name], text=True,
                                        stderr=subprocess.DEVNULL)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    # Blackwell's tcgen05 counts too; tiles of 16 sequences do not get it.
    matrix = re.findall(r"^\s*(?:@\S+\s+)?(?:mma\.|wgmma\.mma|tcgen05\.mma)", binary.asm["ptx"], re.M)
    return needs | {"registers": registers, "stack": stack, "mma": len(matrix)}
