// Products of whole matrices of float32 by AMX, block by block.
#pragma once

#include <algorithm>

#include "cpu/matrix_product.h"
#include "cpu/strips.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

// The strips of `count` rows or columns from `outer`. Returns whether there are numbers too large for tiles.
template <bool kByOuter>
bool pack_strips(const Factor& factor, int64_t outer, int64_t count, int64_t first, int64_t K, int64_t depth,
                 BFloat16* strips) {
  typename Words<kStrip>::Whole found = {};
  // Along whichever side numbers lie side by side, a page holds the strips of several tiles of k, or of several strips.
  const int64_t strip = packed_strip<kParts>(depth);
  if (factor.along_sum) {
    for (int64_t i = 0; i < count; i += kStrip) {
      pack_strip<true, kByOuter>(factor.numbers, factor.stride, outer + i, outer + count, first, K, depth,
                                 strips + i / kStrip * strip, found);
    }
  } else {
    for (int64_t k = 0; k < depth; k += kTileDepth) {
      for (int64_t i = 0; i < count; i += kStrip) {
        pack_strip<false, kByOuter>(factor.numbers, factor.stride, outer + i, outer + count, first + k, K, kTileDepth,
                                    strips + i / kStrip * strip + k * kParts * kStrip, found);
      }
    }
  }
  return any_large<kStrip>(found);
}

// c[kBlock][kBlock] (+)= two strips of rows times two of columns.
XF_HD void add_block(const BFloat16* rows, const BFloat16* columns, int64_t depth, float* c, int64_t ldc, bool first) {
  multiply_block<kParts>(packed_strips<kParts>(rows, depth), packed_strips<kParts>(columns, depth), depth, c, ldc,
                         [&](auto i) {
    if (first) zero_tile<i>();
    else load_tile<i>(c + sums_at(i, ldc), ldc * int64_t(sizeof(float)));
  });
}

// Rows [begin, end) of a product. Returns false where there are numbers too large for tiles, and the rows are not done.
bool multiply_matrices(const MatrixProduct& p, int64_t begin, int64_t end, void* memory) {
  BFloat16* const rows = static_cast<BFloat16*>(memory);
  BFloat16* const columns = rows + kSlabRows * kSlabDepth * kParts;
  float* const corner = reinterpret_cast<float*>(columns + kSlabColumns * kSlabDepth * kParts);
  TileRegisters<true> registers;
  registers.set(kStrip);
  for (int64_t n = 0; n < p.N; n += kSlabColumns) {
    const int64_t width = std::min(kSlabColumns, p.N - n);
    for (int64_t k = 0; k < p.K; k += kSlabDepth) {
      const int64_t depth = std::min(kSlabDepth, tiles(p.K - k) * kTileDepth);
      if (pack_strips<false>(p.b, n, width, k, p.K, depth, columns)) return false;
      for (int64_t m = begin; m < end; m += kSlabRows) {
        const int64_t height = std::min(kSlabRows, end - m);
        if (pack_strips<true>(p.a, m, height, k, p.K, depth, rows)) return false;
        for (int64_t j = 0; j < width; j += kBlock) {
          for (int64_t i = 0; i < height; i += kBlock) {
            const BFloat16* a = rows + i * depth * kParts;
            const BFloat16* b = columns + j * depth * kParts;
            float* c = p.c + (m + i) * p.N + n + j;
            if (height - i >= kBlock && width - j >= kBlock) {
              add_block(a, b, depth, c, p.N, k == 0);
              continue;
            }
            // A block that the result has a part of.
            const int64_t high = std::min<int64_t>(height - i, kBlock), wide = std::min<int64_t>(width - j, kBlock);
            for (int64_t r = 0; r < high && k > 0; ++r) std::copy_n(c + r * p.N, wide, corner + r * kBlock);
            add_block(a, b, depth, corner, kBlock, k == 0);
            for (int64_t r = 0; r < high; ++r) std::copy_n(corner + r * kBlock, wide, c + r * p.N);
          }
        }
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
