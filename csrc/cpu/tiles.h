// Rows of numbers times a panel of the matrix by AMX: product.h's work where the processor multiplies tiles.
//
// Tiles hold bfloat16 and are summed up in float32. A matrix whose numbers all are bfloat16 is taken as it is; so are
// rows of such numbers, and others as three parts each, bfloat16 whose sum is the number, exactly. A matrix of float32,
// in three parts too, takes six products, which pay from about ten rows: but who shares a batch with a sequence must not
// change its results.
//
// A panel is [tiles of k][NP] of tiles, 32 k by W outputs each, filled up by zeros; of a row, each 32 numbers are
// [parts][32]. Of either, the numbers of k and k + W lie side by side. Every sum is formed in one order, whatever the
// number of rows.
//
// The instruction takes subnormal numbers for zeros. Parts of infinity, and sums of them that overflow, would be NaN
// where those of the numbers are not: whoever calls multiplies what has numbers of kLarge and more in another way.
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

// The parts of a row; whether it has numbers too large for tiles, in place of which it is zero.
template <int P, class Storage>
bool split_row(const Storage* x, int64_t columns, BFloat16* row) {
  constexpr int W = kLanes<float>;
  using V = Vec<float, W>;
  typename Words<W>::Whole found = {};
  for (int64_t k = 0; k < columns; k += 2 * W) {
    V parts[2][P];
    for (int half = 0; half < 2; ++half) {
      const V some = load(x + k + half * W, int(std::clamp<int64_t>(columns - k - half * W, 0, W)));
      look_for_large(some, found);
      split(some, parts[half]);
    }
    for (int part = 0; part < P; ++part) store_pairs(row + k * P + part * 2 * W, parts[0][part], parts[1][part]);
  }
  const bool large = any_large<W>(found);
  if (__builtin_expect(large, 0)) std::fill_n(row, tiles(columns) * kTileDepth * P, BFloat16{0});
  return large;
}

// Rows for tiles, in memory of split_rows_bytes.
class SplitRows {
 public:
  SplitRows(void* memory, int64_t rows, int64_t columns, int parts)
      : parts_(parts), columns_(columns), stride_(split_stride(columns)), numbers_(static_cast<BFloat16*>(memory)),
        large_(reinterpret_cast<bool*>(numbers_ + rows * stride_)) {}

  template <class Storage>
  void set(int64_t i, const Storage* x) {
    BFloat16* row = numbers_ + i * stride_;
    large_[i] = parts_ == 1 ? split_row<1>(x, columns_, row) : split_row<kParts>(x, columns_, row);
  }

  bool is_large(int64_t i) const { return large_[i]; }
  int parts() const { return parts_; }
  int64_t columns() const { return columns_; }
  int64_t stride() const { return stride_; }
  const BFloat16* numbers() const { return numbers_; }

 private:
  int parts_;
  int64_t columns_, stride_;
  BFloat16* numbers_;
  bool* large_;
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

// The tile registers of a thread, while it uses them: those of the panel have 32 k, the others `rows` rows.
template <bool kUsed>
class TileRegisters {
 public:
  static constexpr int kMostRows = 16, kOfRows = 4, kOfPanel = 7;  // sums are in the first ones

  TileRegisters() = default;
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
  ~TileRegisters() { release(); }

  void release() {
    if constexpr (kUsed) {
      if (rows_) asm volatile("tilerelease");
    }
    rows_ = 0;
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
      config.rows[i] = uint8_t(i == kOfPanel ? kMostRows : rows);
    }
    if constexpr (kUsed) asm volatile("ldtilecfg %0" ::"m"(config));
    rows_ = rows;
  }

  // A product that nobody needs: between real ones, at least every thousand cycles. After about so many, the unit that
  // multiplies tiles goes to sleep, and takes as many to wake up.
  XF_HD void keep_awake() {
    if constexpr (kUsed) {
      if (rows_) multiply_tile<0, kOfRows, kOfPanel>();
    }
  }

 private:
  int64_t rows_ = 0;
};

// function(integral_constant<int, 0>) to function(integral_constant<int, N - 1>)
template <int... I, class F>
XF_HD void for_each(std::integer_sequence<int, I...>, F function) {
  (function(std::integral_constant<int, I>()), ...);
}
template <int N, class F>
XF_HD void for_each(F function) {
  for_each(std::make_integer_sequence<int, N>(), function);
}

// c[rows][NP][W] = a[rows] panel, of as many rows as the registers have, in P parts.
template <int NP, int P, class Registers>
void multiply_tiles(const BFloat16* panel, int64_t depth, const BFloat16* a, int64_t lda, float* c) {
  constexpr int64_t kRow = 64, kNumbers = kTileBytes / 2;
  constexpr int kRows = Registers::kOfRows, kPanel = Registers::kOfPanel;
  for_each<NP>([](auto v) { zero_tile<v>(); });
  for (int64_t k = 0; k < depth; ++k) {
    for_each<P>([&](auto part) { load_tile<kRows + part>(a + (k * P + part) * kTileDepth, lda * 2); });
    for_each<NP>([&](auto v) {
      load_tile<kPanel>(panel + (k * NP + v) * kNumbers, kRow);
      for_each<P>([&](auto part) { multiply_tile<v, kRows + part, kPanel>(); });
    });
  }
  for_each<NP>([&](auto v) { store_tile<v>(c + v * kLanes<float>, NP * kRow); });
}

// c[rows][NP][W] = the first rows of `x` times a panel.
template <int NP, class Registers>
void multiply_rows(Registers& registers, const BFloat16* panel, const SplitRows& x, int64_t rows, float* c) {
  if (rows == 0) return;
  const int64_t blocks = (rows + Registers::kMostRows - 1) / Registers::kMostRows;
  const int64_t size = (rows + blocks - 1) / blocks;
  registers.set(size);
  for (int64_t block = 0; block < blocks; ++block) {
    // Blocks of one size: where they do not add up, some rows are in two of them.
    const int64_t row = std::min(block * size, rows - size), depth = tiles(x.columns());
    const BFloat16* a = x.numbers() + row * x.stride();
    float* sums = c + row * NP * kLanes<float>;
    if (x.parts() == 1) multiply_tiles<NP, 1, Registers>(panel, depth, a, x.stride(), sums);
    else multiply_tiles<NP, kParts, Registers>(panel, depth, a, x.stride(), sums);
  }
}

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
