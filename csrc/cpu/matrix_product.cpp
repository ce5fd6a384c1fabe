#include "cpu/matrix_product.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

namespace xlstm_fused::cpu {

bool matrix_product(const MatrixProduct& product, MultiplyMatrices multiply, int64_t threads) {
  // Each thread packs all columns: not for a few rows.
  constexpr int64_t kRows = 64;
  const int64_t blocks = (product.M + kRows - 1) / kRows;
  threads = std::clamp<int64_t>(threads, 1, blocks);
  const std::unique_ptr<void, void (*)(void*)> memory(std::aligned_alloc(64, size_t(threads * kProductBytes)),
                                                      std::free);
  if (!memory) throw std::bad_alloc();
  bool done = true;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(int(threads)) reduction(&& : done)
#endif
  for (int64_t i = 0; i < threads; ++i) {
    const int64_t begin = blocks * i / threads * kRows, end = std::min(blocks * (i + 1) / threads * kRows, product.M);
    done = multiply(product, begin, end, static_cast<char*>(memory.get()) + i * kProductBytes) && done;
  }
  return done;
}

}  // namespace xlstm_fused::cpu
