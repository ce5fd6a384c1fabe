// A product of two matrices of float32, by whatever instruction set has one that is better than others'.
#pragma once

#include <stdint.h>

namespace xlstm_fused::cpu {

// A factor: `stride` numbers from one row or column to the next, which lie side by side along the sum or across it.
struct Factor {
  const float* numbers;
  int64_t stride;
  bool along_sum;
};

// c = a b
struct MatrixProduct {
  int64_t M, N, K;
  Factor a, b;  // (M, K), (K, N)
  float* c;     // (M, N), contiguous
};

// What is packed at a time, in multiples of tiles.
constexpr int64_t kSlabRows = 256, kSlabColumns = 512, kSlabDepth = 256;

// Of a thread: the packed rows and columns in three parts of two bytes, and a block of sums.
constexpr int64_t kProductBytes = (kSlabRows + kSlabColumns) * kSlabDepth * 6 + 32 * 32 * 4;

// Rows [begin, end) with `memory` of kProductBytes, at an address that is a multiple of 64; false where the numbers are
// too large for it. The rows are the same whatever the others.
using MultiplyMatrices = bool (*)(const MatrixProduct&, int64_t begin, int64_t end, void* memory);

// On up to `threads` threads. Throws std::bad_alloc.
bool matrix_product(const MatrixProduct& product, MultiplyMatrices multiply, int64_t threads);

}  // namespace xlstm_fused::cpu
