// Products of blocks of float32 by AMX: two by two tiles of sums, of strips of rows and of columns.
//
// Both factors are taken as three parts, bfloat16 whose sum is the number, as tiles.h takes rows. Of the nine products
// of the parts of two numbers six are formed: the others are less than 2^-22 of the whole, of either sign, and less than
// the rounding of a sum. That is six instructions of tiles, which take half the time of float32's own. Numbers that are
// bfloat16 are one part, and one product.
#pragma once

#include <algorithm>

#include "cpu/pack.h"
#include "cpu/tiles.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

constexpr int kStrip = kLanes<float>, kBlock = 2 * kStrip;  // lines of a strip; rows and columns of a block
constexpr int64_t kTileNumbers = kTileBytes / 2;
#if defined(XLSTM_FUSED_AMX_BF16)
static_assert(kBlock == kBlockRows);
#endif

// The parts of a number.
template <class Storage>
constexpr int kPartsOf = std::is_same_v<Storage, BFloat16> ? 1 : kParts;

// Strips of rows or columns, for each tile of k that of each part. Counted in numbers.
struct Strips {
  const BFloat16* numbers;
  int64_t strip;  // from one strip to the next
  int64_t part;   // from one tile of a strip to the next
  int64_t line;   // from one line of a tile to the next
};

// Strips whose tiles are packed, `depth` k of each in P parts.
template <int P>
XF_HD int64_t packed_strip(int64_t depth) {
  return tiles(depth) * P * kTileNumbers;
}
template <int P>
XF_HD Strips packed_strips(const BFloat16* numbers, int64_t depth) {
  return {numbers, packed_strip<P>(depth), kTileNumbers, kTileDepth};
}

// Up to kStrip vectors `stride` apart, zeros beyond `vectors` of them and beyond `lanes` lanes.
template <class Storage>
XF_HD void load_strip(const Storage* p, int64_t stride, int64_t vectors, int64_t lanes, VecOf<float> (&x)[kStrip]) {
  load_square(p, stride, int(std::clamp<int64_t>(vectors, 0, kStrip)), int(std::clamp<int64_t>(lanes, 0, kStrip)), x);
}

// The strip from `outer`, k from `first` to `first + depth`, of a factor with `outers` rows or columns outside of the
// sum, to `strip`. Numbers are `stride` apart along one of its sides, side by side along the other: the sum's if
// kAlongSum. Lines are of one number outside of the sum if kByOuter, else of the pairs of one k.
template <bool kAlongSum, bool kByOuter, class Storage>
void pack_strip(const Storage* p, int64_t stride, int64_t outer, int64_t outers, int64_t first, int64_t K,
                int64_t depth, BFloat16* strip, typename Words<kStrip>::Whole& found) {
  constexpr int P = kPartsOf<Storage>;
  constexpr bool kTransposed = kAlongSum != kByOuter;
  for (int64_t k = 0; k < depth; k += kTileDepth, strip += P * kTileNumbers) {
    VecOf<float> x[2][kStrip];
    for (int half = 0; half < 2; ++half) {
      const int64_t from = std::min(first + k + half * kStrip, K), left = K - from;
      const Storage* source = kAlongSum ? p + outer * stride + from : p + from * stride + outer;
      load_strip(source, stride, kAlongSum ? outers - outer : left, kAlongSum ? left : outers - outer, x[half]);
      for (const VecOf<float>& each : x[half]) look_for_large(each, found);
      if constexpr (kTransposed) transpose(x[half], std::make_integer_sequence<int, kStrip>());
    }
    for (int i = 0; i < kStrip; ++i) {
      VecOf<float> parts[2][P];
      for (int half = 0; half < 2; ++half) split(x[half][i], parts[half]);
      for (int part = 0; part < P; ++part) {
        store_pairs(strip + part * kTileNumbers + i * kTileDepth, parts[0][part], parts[1][part]);
      }
    }
  }
}

// Where in a block the tile of sums i begins.
XF_HD int64_t sums_at(int i, int64_t ldc) { return i / 2 * kStrip * ldc + i % 2 * kStrip; }

// c[kBlock][kBlock] = what start(i) puts into the tile of sums i, plus two strips of rows times two of columns.
template <int P, class Start>
XF_HD void multiply_block(const Strips& rows, const Strips& columns, int64_t depth, float* c, int64_t ldc,
                          Start start) {
  for_each<4>(start);
  for (int64_t k = 0, count = tiles(depth); k < count; ++k) {
    const auto load_rows = [&](int part) {
      const BFloat16* tile = rows.numbers + (k * P + part) * rows.part;
      load_tile<4>(tile, rows.line * 2);
      load_tile<5>(tile + rows.strip, rows.line * 2);
    };
    const auto load_columns = [&](int part) {
      const BFloat16* tile = columns.numbers + (k * P + part) * columns.part;
      load_tile<6>(tile, columns.line * 2);
      load_tile<7>(tile + columns.strip, columns.line * 2);
    };
    const auto multiply = [] {
      multiply_tile<0, 4, 6>();
      multiply_tile<1, 4, 7>();
      multiply_tile<2, 5, 6>();
      multiply_tile<3, 5, 7>();
    };
    load_columns(0);
    if constexpr (P == 1) {
      load_rows(0), multiply();
    } else {
      // Each of the six pairs of parts that count, with few loads.
      load_rows(2), multiply();
      load_rows(1), multiply();
      load_rows(0), multiply();
      load_columns(2), multiply();
      load_columns(1), multiply();
      load_rows(1), multiply();
    }
  }
  for_each<4>([&](auto i) { store_tile<i>(c + sums_at(i, ldc), ldc * int64_t(sizeof(float))); });
}

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
