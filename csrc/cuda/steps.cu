// Launches of one step: the kernels of step.cuh for every cell and kind of number.
#include <cuda_runtime.h>

#include <string>

#include "cells/cells.h"
#include "cuda/check.h"
#include "cuda/launch.h"
#include "cuda/step.cuh"

namespace xlstm_fused::cuda {
namespace {

constexpr int kThreads = 256;

template <class Cell>
const void* kernel_of(const std::string& kind, bool backward) {
#define XLSTM_FUSED_FIND(name, exchange)                                                  \
  if (kind == #name) {                                                                    \
    return backward ? reinterpret_cast<const void*>(&step_bwd_kernel<Cell, kinds::name>)  \
                    : reinterpret_cast<const void*>(&step_fwd_kernel<Cell, kinds::name>); \
  }
  XLSTM_FUSED_KINDS(XLSTM_FUSED_FIND, )
#undef XLSTM_FUSED_FIND
  return nullptr;
}

template <class Params>
void launch_step(const Params& params, const Step& step, const void* kernel, int device, void* stream) {
  const int64_t items = params.K * params.N * params.rows.B * params.D;
  if (items == 0) return;
  // As in launch.cu.
  check(cudaSetDevice(device), "cudaSetDevice");
  void* arguments[] = {const_cast<Params*>(&params), const_cast<Step*>(&step)};
  check(cudaLaunchKernel(kernel, dim3(unsigned((items + kThreads - 1) / kThreads)), dim3(kThreads), arguments, 0,
                         static_cast<cudaStream_t>(stream)),
        "launch");
}

}  // namespace

const void* step_kernel(int cell, const std::string& kind, bool backward) {
  int index = 0;
#define XLSTM_FUSED_FIND(name, Cell) \
  if (cell == index++) return kernel_of<Cell>(kind, backward);
  XLSTM_FUSED_CELLS(XLSTM_FUSED_FIND)
#undef XLSTM_FUSED_FIND
  return nullptr;
}

void step_fwd(const ForwardParams& params, const Step& step, const void* kernel, int device, void* stream) {
  launch_step(params, step, kernel, device, stream);
}

void step_bwd(const BackwardParams& params, const Step& step, const void* kernel, int device, void* stream) {
  launch_step(params, step, kernel, device, stream);
}

}  // namespace xlstm_fused::cuda
