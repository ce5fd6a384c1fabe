// What a launch of one step works on.
#pragma once

#include <stdint.h>

namespace xlstm_fused::cuda {

// Beside the arrays of the pass. Forward, step -1 sets out, and each step leaves h for the product of the next; its
// state is in h_n and s_n. Backward, each step leaves dpre for the product before the next, and step -1 ends.
struct Step {
  int64_t step;
  void* operand;         // storage: h, forward, (K, N, B, D); dpre, backward, (K, N, B, G, D)
  const float* product;  // of the operand of the step before: R h, (K, N, B, G, D), or R^T dpre, (K, N, B, D)
  float* carry;          // backward, (2, K, B, N, D), zero before the first step: the gradient of h but for the product;
                         // the sum of the gradients of h that reset states have
};

}  // namespace xlstm_fused::cuda
