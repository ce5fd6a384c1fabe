// Rows of numbers times a panel of the recurrent matrix: the matrix product inside each step.
#pragma once

#include "cpu/storage.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

// A panel is [k][NP][W]: for each k, NP vectors of consecutive outputs. Products are summed over ascending k, one fused
// step each, whatever the tile: so neither the number of rows nor the split of the work among threads changes a result.
//
// A panel of a matrix whose numbers all are bfloat16 may hold them as such, half the bytes for the same sums. Of two
// vectors the lanes then alternate: a word holds one number of each, and widens to either by one instruction. Or a word
// holds the numbers of two consecutive k, k counts such pairs, and so do the rows: each step is then two fused ones,
// the odd number first.

#if defined(__aarch64__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = XLSTM_FUSED_VECTOR_BYTES == 64;
#endif

// Bytes of panel that are applied to all rows before the next ones, so that they are read from the second-level cache.
constexpr int64_t kChunkBytes = 65536;

template <int NV, class E, int W>
XF_HD void load_row(const E* p, Vec<E, W> (&r)[NV]) {
  for (int v = 0; v < NV; ++v) r[v] = Vec<E, W>::load(p + v * W);
}

template <int NV, int W>
XF_HD void load_row(const BFloat16* p, Vec<float, W> (&r)[NV]) {
  using Raw = typename Vec<float, W>::Raw;
  for (int v = 0; v + 1 < NV; v += 2) {
    typename Words<W>::Whole words;
    __builtin_memcpy(&words, p + v * W, sizeof words);
    r[v].raw = (Raw)(words << 16);
    r[v + 1].raw = (Raw)(words & 0xffff0000u);
  }
  if constexpr (NV % 2 == 1) r[NV - 1] = load(p + (NV - 1) * W);
}

template <int NV, int W>
XF_HD void load_row(const Pair* p, Vec<float, W> (&r)[NV]) {
  for (int v = 0; v < NV; ++v) __builtin_memcpy(&r[v].raw, p + v * W, sizeof r[v].raw);
}

template <class E, int W>
XF_HD Vec<E, W> multiply_add(E x, Vec<E, W> r, Vec<E, W> sum) {
  return fma(Vec<E, W>(x), r, sum);
}

template <int W>
XF_HD Vec<float, W> multiply_add(BFloat16 x, Vec<float, W> r, Vec<float, W> sum) {
  return multiply_add(widen(x), r, sum);
}

#if defined(__AVX512BF16__)
XF_HD Vec<float, 16> multiply_add(Pair x, Vec<float, 16> r, Vec<float, 16> sum) {
  float word;
  __builtin_memcpy(&word, &x, sizeof word);
  const Vec<float, 16>::Raw both = (Vec<float, 16>::Raw)_mm512_set1_ps(word);
  sum.raw = (Vec<float, 16>::Raw)_mm512_dpbf16_ps((__m512)sum.raw, (__m512bh)both, (__m512bh)r.raw);
  return sum;
}
#endif

// c[MB][NP][W] (+)= a[MB][K] panel[K][NP][W] for the first NV vectors of the panel.
template <int MB, int NV, int NP, class N, class A, class E>
void tile(const N* __restrict panel, int64_t K, const A* __restrict a, int64_t lda, E* __restrict c, bool first) {
  constexpr int W = kLanes<E>;
  using V = Vec<E, W>;
  V acc[MB][NV];
  for (int i = 0; i < MB; ++i) {
    for (int v = 0; v < NV; ++v) acc[i][v] = first ? V(0) : V::load(c + (i * NP + v) * W);
  }
  for (int64_t k = 0; k < K; ++k) {
    // The panel's vectors stay in registers and each row's number is used up at once: the compiler keeps this order, and
    // any other would push sums out of the registers.
    V r[NV];
    load_row(panel + k * NP * W, r);
    for (int i = 0; i < MB; ++i) {
      const A x = a[i * lda + k];
      for (int v = 0; v < NV; ++v) acc[i][v] = multiply_add(x, r[v], acc[i][v]);
    }
  }
  for (int i = 0; i < MB; ++i) {
    for (int v = 0; v < NV; ++v) acc[i][v].store(c + (i * NP + v) * W);
  }
}

template <int NV, int NP, class N, class A, class E>
void rows_tile(int64_t rows, const N* panel, int64_t K, const A* a, int64_t lda, E* c, bool first) {
  switch (rows) {
    case 1: return tile<1, NV, NP>(panel, K, a, lda, c, first);
    case 2: return tile<2, NV, NP>(panel, K, a, lda, c, first);
    case 3: return tile<3, NV, NP>(panel, K, a, lda, c, first);
    case 4: if constexpr (kManyRegisters || NV < 4) return tile<4, NV, NP>(panel, K, a, lda, c, first); break;
    case 5: if constexpr (kManyRegisters || NV < 3) return tile<5, NV, NP>(panel, K, a, lda, c, first); break;
    case 6: if constexpr (kManyRegisters || NV < 3) return tile<6, NV, NP>(panel, K, a, lda, c, first); break;
  }
}

// The most rows of a tile of NV vectors: the sums must stay in registers.
constexpr int64_t max_rows(int NV) { return kManyRegisters || NV < 3 ? 6 : NV == 3 ? 4 : 3; }

// c[rows][NP][W] = a[rows][K] panel[K][NP][W]
template <int NP, class N, class A, class E>
void multiply(const N* panel, int64_t K, const A* a, int64_t lda, int64_t rows, E* c) {
  constexpr int W = kLanes<E>;
  // Where registers are few, many rows by half a panel load less than few rows by all of it.
  const bool halves = NP == 4 && !kManyRegisters && rows > max_rows(NP);
  const int64_t most = halves ? 6 : max_rows(NP);
  const int64_t blocks = (rows + most - 1) / most;
  const int64_t chunk = blocks == 1 ? K : kChunkBytes / int64_t(NP * W * sizeof(N));
  for (int64_t k = 0; k < K; k += chunk) {
    const int64_t count = K - k < chunk ? K - k : chunk;
    const N* part = panel + k * NP * W;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t row = rows * block / blocks, size = rows * (block + 1) / blocks - row;
      const A* x = a + row * lda + k;
      E* sums = c + row * NP * W;
      if (halves) {
        constexpr int half = NP == 4 ? 2 : NP;
        rows_tile<half, NP>(size, part, count, x, lda, sums, k == 0);
        rows_tile<half, NP>(size, part + half * W, count, x, lda, sums + half * W, k == 0);
      } else {
        rows_tile<NP, NP>(size, part, count, x, lda, sums, k == 0);
      }
    }
  }
}

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
