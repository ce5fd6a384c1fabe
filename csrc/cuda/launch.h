// Launching the kernels, for code that knows nothing of CUDA.
#pragma once

#include <string>

#include "cuda/plan.h"
#include "cuda/step.h"
#include "params.h"

namespace xlstm_fused::cuda {

// What is not the kernels' own affair in a launch.
struct Launch {
  Exchange exchange;
  int tiles, warps;
  int64_t shared_bytes;
  int groups;  // of programs, that run at once; for exchange grid only
  int device;
  void* stream;
};

// The kinds of numbers there are kernels for, by their names in Python and in namespace kinds of element.cuh.
#define XLSTM_FUSED_KINDS(X, exchange) \
  X(bfloat16, exchange)                \
  X(float16, exchange)                 \
  X(float32, exchange)                 \
  X(tf32, exchange)

#define XLSTM_FUSED_INSTANCES(X) \
  XLSTM_FUSED_KINDS(X, alone)    \
  XLSTM_FUSED_KINDS(X, cluster)  \
  XLSTM_FUSED_KINDS(X, grid)

// The kernel of a cell, by its place in cells/cells.h; nullptr where there is none.
using Instances = const void* (*)(int cell, int tiles);

// instances.cu: the kernels of each pass, kind and exchange.
#define XLSTM_FUSED_DECLARE(kind, exchange)         \
  const void* fwd_##kind##_##exchange(int, int);    \
  const void* bwd_##kind##_##exchange(int, int);
XLSTM_FUSED_INSTANCES(XLSTM_FUSED_DECLARE)
#undef XLSTM_FUSED_DECLARE

// Throw std::runtime_error with CUDA's words. `words`: (launch.groups, plan.words), all zero; nullptr but for grid.
void recurrence_fwd(const ForwardParams& params, const Input& input, const Plan& plan, uint64_t* words,
                    const void* kernel, const Launch& launch);
void recurrence_bwd(const BackwardParams& params, const Plan& plan, uint64_t* words, const void* weight_t,
                    const void* kernel, const Launch& launch);

// steps.cu: the kernel of one step for a cell, by its place in cells/cells.h, and a kind; nullptr where there is none.
const void* step_kernel(int cell, const std::string& kind, bool backward);

// As above.
void step_fwd(const ForwardParams& params, const Step& step, const void* kernel, int device, void* stream);
void step_bwd(const BackwardParams& params, const Step& step, const void* kernel, int device, void* stream);

// How many programs, or clusters or groups of them, the device can run at once; 0 if not even one.
int resident(const void* kernel, const Plan& plan, const Launch& launch);

}  // namespace xlstm_fused::cuda
