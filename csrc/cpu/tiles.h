// Rows of numbers times a panel of the matrix by AMX: product.h's work where the processor multiplies tiles.
//
// Tiles hold bfloat16 and are summed up in float32. A float32 is the sum of three such parts, exactly, and of the nine
// products of the parts of two numbers six are formed: the others are less than 2^-22 of the whole, of either sign, and
// less than the rounding of a sum. What is a bfloat16 already is its only part.
//
// A panel is [tiles of k][parts][NP] of tiles, 32 k by W outputs each, filled up by zeros; of a row of numbers each 32
// are [parts][32]. Of either, the numbers of k and k + W lie side by side. Every sum is formed in one order, whatever
// the number of rows.
//
// The instruction takes subnormal numbers for zeros. Parts of infinity, and sums of them that overflow, would be NaN
// where those of the numbers are not: whoever calls multiplies numbers of kLarge and more without tiles.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/storage.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

constexpr uint32_t kLarge = 0x5b800000;  // the bits of 2^56: no sum of products of numbers below it overflows

// Sets the highest bit of a lane of `found` where |x| >= kLarge, or x is none.
template <int W>
XF_HD void look_for_large(Vec<float, W> x, typename Words<W>::Whole& found) {
  found |= ((typename Words<W>::Whole)x.raw & 0x7fffffff) + (0x80000000 - kLarge);
}

template <int W>
XF_HD bool any_large(typename Words<W>::Whole found) {
  for (int lane = 1; lane < W; ++lane) found[0] |= found[lane];
  return found[0] >> 31;
}

// x as the sum of P numbers of bfloat16, each but the last the nearest to what is left.
template <int P, int W>
XF_HD void split(Vec<float, W> x, Vec<float, W> (&parts)[P]) {
  using Whole = typename Words<W>::Whole;
  for (int i = 0; i + 1 < P; ++i) {
    parts[i].raw = (typename Vec<float, W>::Raw)(((Whole)x.raw + 0x8000) & 0xffff0000);
    x = x - parts[i];
  }
  parts[P - 1] = x;
}

// The parts of two vectors side by side, `stride` numbers from part to part.
template <int P, int W>
XF_HD void store_parts(BFloat16* p, int64_t stride, Vec<float, W> first, Vec<float, W> second) {
  Vec<float, W> a[P], b[P];
  split<P>(first, a);
  split<P>(second, b);
  for (int i = 0; i < P; ++i) {
    const Vec<float, W> both = side_by_side(a[i], b[i]);
    __builtin_memcpy(p + i * stride, &both.raw, sizeof both.raw);
  }
}

// The parts of a row; whether it has numbers too large for tiles, in place of which it is zero.
template <int P>
bool split_row(const float* x, int64_t columns, BFloat16* row) {
  constexpr int W = kLanes<float>;
  using V = Vec<float, W>;
  typename Words<W>::Whole found = {};
  const auto some = [&](int64_t k) { return load(x + k, int(std::clamp<int64_t>(columns - k, 0, W))); };
  for (int64_t k = 0; k < columns; k += 2 * W) {
    const V first = some(k), second = some(k + W);
    look_for_large(first, found);
    look_for_large(second, found);
    store_parts<P>(row + k * P, 2 * W, first, second);
  }
  const bool large = any_large<W>(found);
  if (__builtin_expect(large, 0)) std::fill_n(row, tiles(columns) * kTileDepth * P, BFloat16{0});
  return large;
}

// Rows for tiles, in memory of tile_rows_bytes.
class SplitRows {
 public:
  SplitRows(void* memory, int64_t rows, int64_t columns, int parts)
      : parts_(parts), columns_(columns), stride_(split_stride(columns)), numbers_(static_cast<BFloat16*>(memory)),
        rows_(reinterpret_cast<TileRow*>(numbers_ + rows * stride_)) {}

  // Row i, which must stay where it is.
  void set(int64_t i, const float* x) {
    BFloat16* row = numbers_ + i * stride_;
    rows_[i] = {x, parts_ == 1 ? split_row<1>(x, columns_, row) : split_row<3>(x, columns_, row)};
  }

  const TileRow& operator[](int64_t i) const { return rows_[i]; }
  int parts() const { return parts_; }
  int64_t columns() const { return columns_; }
  int64_t stride() const { return stride_; }
  const BFloat16* numbers() const { return numbers_; }

 private:
  int parts_;
  int64_t columns_, stride_;
  BFloat16* numbers_;
  TileRow* rows_;
};

// The tile registers of a thread, while it uses them: those of the panel have 32 k, the others `rows` rows.
template <bool kUsed>
class TileRegisters {
 public:
  static constexpr int kRows = 16, kOfRows = 4, kOfPanel = 7;  // sums are in the first ones

  TileRegisters() = default;
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
  ~TileRegisters() {
    if constexpr (kUsed) {
      if (rows_) asm volatile("tilerelease");
    }
  }

  void set(int64_t rows) {
    if (rows == rows_) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i <= kOfPanel; ++i) {
      config.bytes[i] = 64;
      config.rows[i] = uint8_t(i == kOfPanel ? kRows : rows);
    }
    if constexpr (kUsed) asm volatile("ldtilecfg %0" ::"m"(config));
    rows_ = rows;
  }

 private:
  int64_t rows_ = 0;
};

// By the assembler's names, which alone take a register that a template chose.
template <int Register>
XF_HD void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(Register) : "memory");
}
template <int Register>
XF_HD void store_tile(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(Register) : "memory");
}
template <int Register>
XF_HD void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Register));
}
template <int Sum, int Rows, int Panel>
XF_HD void multiply_tile() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Rows), "i"(Panel));
}

// function(integral_constant<int, 0>) to function(integral_constant<int, N - 1>)
template <int... I, class F>
XF_HD void for_each(std::integer_sequence<int, I...>, F function) {
  (function(std::integral_constant<int, I>()), ...);
}
template <int N, class F>
XF_HD void for_each(F function) {
  for_each(std::make_integer_sequence<int, N>(), function);
}

// c[rows][NP][W] = a[rows] panel, of as many rows as the registers have: A parts of them, P of the panel.
template <int NP, int A, int P, class Registers>
void multiply_tiles(const BFloat16* panel, int64_t depth, const BFloat16* a, int64_t lda, float* c) {
  constexpr int64_t kRow = 64, kNumbers = kTileBytes / 2;
  constexpr int R = Registers::kOfRows, B = Registers::kOfPanel;
  for_each<NP>([](auto v) { zero_tile<v>(); });
  for (int64_t k = 0; k < depth; ++k) {
    for_each<A>([&](auto i) { load_tile<R + i>(a + (k * A + i) * kTileDepth, lda * 2); });
    for_each<P>([&](auto part) {
      for_each<NP>([&](auto v) {
        load_tile<B>(panel + ((k * P + part) * NP + v) * kNumbers, kRow);
        for_each<A - part>([&](auto i) { multiply_tile<v, R + i, B>(); });
      });
    });
  }
  for_each<NP>([&](auto v) { store_tile<v>(c + v * kTileBytes / kRow, NP * kRow); });
}

// c[rows][NP][W] = the first rows of `x` times a panel of P parts.
template <int NP, int A, int P, class Registers>
void multiply_rows(Registers& registers, const BFloat16* panel, const SplitRows& x, int64_t rows, float* c) {
  // Blocks of one size: where they do not add up, some rows are in two of them.
  const int64_t blocks = (rows + Registers::kRows - 1) / Registers::kRows, size = (rows + blocks - 1) / blocks;
  registers.set(size);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t row = std::min(block * size, rows - size);
    multiply_tiles<NP, A, P, Registers>(panel, tiles(x.columns()), x.numbers() + row * x.stride(), x.stride(),
                                        c + row * NP * kLanes<float>);
  }
}

template <int NP, class Registers>
void multiply(Registers& registers, const BFloat16* panel, Form form, const SplitRows& x, int64_t rows, float* c) {
  if (form == kSplitTiles) multiply_rows<NP, 3, 3>(registers, panel, x, rows, c);
  else if (x.parts() == 3) multiply_rows<NP, 3, 1>(registers, panel, x, rows, c);
  else multiply_rows<NP, 1, 1>(registers, panel, x, rows, c);
}

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
