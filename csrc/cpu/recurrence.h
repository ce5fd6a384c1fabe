// A whole recurrence on the CPU: plans, packs the matrix, and runs the jobs on threads.
#pragma once

#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "params.h"

namespace xlstm_fused::cpu {

Shape shape_of(const Problem& problem, const Kernel& kernel);

// By the plan, or by the best one for as many threads as the OpenMP runtime gives where those are fewer. Throw
// std::bad_alloc if there is no memory for the packed matrix and the buffers.
void recurrence_fwd(const ForwardParams& params, const Kernel& kernel, const Plan& plan);
void recurrence_bwd(const BackwardParams& params, const Kernel& kernel, const Plan& plan);

}  // namespace xlstm_fused::cpu
