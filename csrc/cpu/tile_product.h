// Products of whole matrices of float32 by AMX.
//
// Both factors are taken as three parts, bfloat16 whose sum is the number, as tiles.h takes rows. Of the nine products
// of the parts of two numbers six are formed: the others are less than 2^-22 of the whole, of either sign, and less than
// the rounding of a sum. That is six instructions of tiles, which take half the time of float32's own.
#pragma once

#include <algorithm>

#include "cpu/matrix_product.h"
#include "cpu/pack.h"
#include "cpu/tiles.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

// A block of the result is two by two tiles of sums; the rows and columns of its factors are packed in strips of 16, of
// which a tile of k is [parts][16] lines of 64 bytes.
constexpr int kParts = 3, kStrip = 16, kBlock = 2 * kStrip;
constexpr int64_t kTileNumbers = kTileBytes / 2;

// Up to 16 vectors `stride` apart, zeros beyond `vectors` of them and beyond `lanes` lanes.
XF_HD void load_strip(const float* p, int64_t stride, int64_t vectors, int64_t lanes, VecOf<float> (&x)[kStrip]) {
  load_square(p, stride, int(std::clamp<int64_t>(vectors, 0, kStrip)), int(std::clamp<int64_t>(lanes, 0, kStrip)), x);
}

// The strip from `outer`, k from `first` to `first + depth`, of a factor with `outers` rows or columns outside of the
// sum, to `strip`. Numbers are `stride` apart along one of its sides, side by side along the other: the sum's if
// kAlongSum. Lines are of one number outside of the sum if kByOuter, else of the pairs of one k.
template <bool kAlongSum, bool kByOuter>
void pack_strip(const float* p, int64_t stride, int64_t outer, int64_t outers, int64_t first, int64_t K, int64_t depth,
                BFloat16* strip, typename Words<kStrip>::Whole& found) {
  constexpr bool kTransposed = kAlongSum != kByOuter;
  for (int64_t k = 0; k < depth; k += kTileDepth, strip += kParts * kTileNumbers) {
    VecOf<float> x[2][kStrip];
    for (int half = 0; half < 2; ++half) {
      const int64_t from = std::min(first + k + half * kStrip, K), left = K - from;
      const float* source = kAlongSum ? p + outer * stride + from : p + from * stride + outer;
      load_strip(source, stride, kAlongSum ? outers - outer : left, kAlongSum ? left : outers - outer, x[half]);
      for (const VecOf<float>& each : x[half]) look_for_large(each, found);
      if constexpr (kTransposed) transpose(x[half], std::make_integer_sequence<int, kStrip>());
    }
    for (int i = 0; i < kStrip; ++i) {
      VecOf<float> parts[2][kParts];
      for (int half = 0; half < 2; ++half) split(x[half][i], parts[half]);
      for (int part = 0; part < kParts; ++part) {
        store_pairs(strip + part * kTileNumbers + i * kTileDepth, parts[0][part], parts[1][part]);
      }
    }
  }
}

// The strips of `count` rows or columns from `outer`. Returns whether there are numbers too large for tiles.
template <bool kByOuter>
bool pack_strips(const Factor& factor, int64_t outer, int64_t count, int64_t first, int64_t K, int64_t depth,
                 BFloat16* strips) {
  typename Words<kStrip>::Whole found = {};
  // Along whichever side numbers lie side by side, a page holds the strips of several tiles of k, or of several strips.
  const int64_t strip = depth / kTileDepth * kParts * kTileNumbers;
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
XF_HD void multiply_block(const BFloat16* rows, const BFloat16* columns, int64_t depth, float* c, int64_t ldc,
                          bool first) {
  constexpr int64_t kLine = 64;
  const int64_t strip = depth / kTileDepth * kParts * kTileNumbers, bytes = ldc * int64_t(sizeof(float));
  const auto sum = [&](auto i) { return c + i / 2 * kStrip * ldc + i % 2 * kStrip; };
  for_each<4>([&](auto i) {
    if (first) zero_tile<i>();
    else load_tile<i>(sum(i), bytes);
  });
  for (int64_t k = 0; k < strip; k += kParts * kTileNumbers) {
    const auto load_rows = [&](int part) {
      load_tile<4>(rows + k + part * kTileNumbers, kLine);
      load_tile<5>(rows + strip + k + part * kTileNumbers, kLine);
    };
    const auto load_columns = [&](int part) {
      load_tile<6>(columns + k + part * kTileNumbers, kLine);
      load_tile<7>(columns + strip + k + part * kTileNumbers, kLine);
    };
    const auto multiply = [] {
      multiply_tile<0, 4, 6>();
      multiply_tile<1, 4, 7>();
      multiply_tile<2, 5, 6>();
      multiply_tile<3, 5, 7>();
    };
    // Each of the six pairs of parts that count, with few loads.
    load_columns(0);
    load_rows(2), multiply();
    load_rows(1), multiply();
    load_rows(0), multiply();
    load_columns(2), multiply();
    load_columns(1), multiply();
    load_rows(1), multiply();
  }
  for_each<4>([&](auto i) { store_tile<i>(sum(i), bytes); });
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
              multiply_block(a, b, depth, c, p.N, k == 0);
              continue;
            }
            // A block that the result has a part of.
            const int64_t high = std::min<int64_t>(height - i, kBlock), wide = std::min<int64_t>(width - j, kBlock);
            for (int64_t r = 0; r < high && k > 0; ++r) std::copy_n(c + r * p.N, wide, corner + r * kBlock);
            multiply_block(a, b, depth, corner, kBlock, k == 0);
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
