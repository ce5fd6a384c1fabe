// A whole recurrence on the CPU: plans, packs the matrix, and runs the jobs on threads.
#pragma once

#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "params.h"

namespace xlstm_fused::cpu {

Shape shape_of(const Problem& problem, const Kernel& kernel, int64_t inputs = 0);

// Whether the product of an input is formed by tiles.
bool takes_tiled_input(const Kernel& kernel, int64_t T, int64_t D, int64_t inputs);

// Whether a call is so long that somebody may want to stop it: more than a few milliseconds.
bool is_long(const Shape& shape, const Plan& plan);

// By the plan, or by the best one for as many threads as the OpenMP runtime gives where those are fewer. `asked`, which
// may be nullptr, is called now and then from the calling thread; where it returned true, so do these, and the results
// are not complete. To `seconds`, (kPhases,) or nullptr, those of all threads are added. Throw std::bad_alloc if there
// is no memory for the packed matrices and the buffers.
bool recurrence_fwd(const LayerParams& params, const Kernel& kernel, const Plan& plan, bool (*asked)(),
                    double* seconds);
bool recurrence_bwd(const BackwardParams& params, const Kernel& kernel, const Plan& plan, bool (*asked)(),
                    double* seconds);

}  // namespace xlstm_fused::cpu
