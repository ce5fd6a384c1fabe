// The recurrent matrix rearranged into the panels that product.h reads.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/product.h"
#include "cpu/storage.h"
#include "params.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

// The matrix of gate g, direction k and head n: (D_out, D_in).
template <class Storage, int G>
XF_HD const Storage* matrix(const Problem& p, int64_t k, int64_t g, int64_t n) {
  return static_cast<const Storage*>(p.weight_hh) + ((k * G + g) * p.N + n) * p.D * p.D;
}

// x[i][j] <-> x[j][i], by W-fold perfect shuffles of rows i and i + W / 2.
template <class E, int W, int... Lane>
XF_HD void transpose(Vec<E, W> (&x)[W], std::integer_sequence<int, Lane...>) {
  Vec<E, W> y[W];
  for (int stage = 1; stage < W; stage *= 2) {
    for (int i = 0; i < W / 2; ++i) {
      y[2 * i].raw = __builtin_shufflevector(x[i].raw, x[i + W / 2].raw, (Lane % 2 * W + Lane / 2)...);
      y[2 * i + 1].raw = __builtin_shufflevector(x[i].raw, x[i + W / 2].raw, (Lane % 2 * W + Lane / 2 + W / 2)...);
    }
    for (int i = 0; i < W; ++i) x[i] = y[i];
  }
}

// x[i] = row i of a matrix whose rows are `stride` apart; zero outside of the first `rows` and `columns`.
template <class Storage, int W>
XF_HD void load_square(const Storage* p, int64_t stride, int rows, int columns, VecOf<Storage> (&x)[W]) {
  if (__builtin_expect(rows == W && columns == W, 1)) {
    for (int i = 0; i < W; ++i) x[i] = load(p + i * stride);
  } else {
    for (int i = 0; i < W; ++i) x[i] = i < rows ? load(p + i * stride, columns) : VecOf<Storage>(0);
  }
}

// Whether every number of the matrix is a bfloat16.
template <class Storage>
bool is_bfloat16(const Problem& p, int64_t gates) {
  if constexpr (!std::is_same_v<Storage, float>) return std::is_same_v<Storage, BFloat16>;
  constexpr int64_t kBlock = 1024;
  const int64_t count = p.K * gates * p.N * p.D * p.D;
  const char* numbers = static_cast<const char*>(p.weight_hh);
  for (int64_t i = 0; i < count; i += kBlock) {
    uint32_t low = 0;
    for (int64_t j = i; j < std::min(count, i + kBlock); ++j) {
      uint32_t bits;
      __builtin_memcpy(&bits, numbers + j * int64_t(sizeof bits), sizeof bits);
      low |= bits & 0xffff;
    }
    if (low) return false;
  }
  return true;
}

// Vector v of a panel's row of `count` vectors; of a pair, the first one first.
template <class E, int W>
XF_HD void store_in_row(E* row, int v, int, Vec<E, W> x) {
  x.store(row + v * W);
}

template <int W>
XF_HD void store_in_row(BFloat16* row, int v, int count, Vec<float, W> x) {
  using Whole = typename Words<W>::Whole;
  if (v % 2 == 0 && v + 1 == count) return store(row + v * W, x);
  BFloat16* const pair = row + v / 2 * 2 * W;
  Whole words = (Whole)x.raw;
  if (v % 2 == 0) {
    words >>= 16;
  } else {
    Whole first;
    __builtin_memcpy(&first, pair, sizeof first);
    words = (words & 0xffff0000u) | first;
  }
  __builtin_memcpy(pair, &words, sizeof words);
}

// The vector v of units of head n, of each gate of a matrix (K, G, N, D, inputs), to a panel [inputs][G][W] of numbers N;
// [ceil(inputs / 2)][G][W] of pairs, an odd last one filled up by zeros.
template <class Storage, int G, class N>
void pack_rows(const Problem& p, const void* matrix, int64_t inputs, int64_t k, int64_t n, int64_t v, N* panel) {
  constexpr int W = kLanes<Compute<Storage>>;
  constexpr bool kPaired = std::is_same_v<N, Pair>;
  const int rows = int(p.D - v * W < W ? p.D - v * W : W);
  for (int64_t in = 0; in < inputs; in += W) {
    const int columns = int(inputs - in < W ? inputs - in : W);
    for (int g = 0; g < G; ++g) {
      const int64_t row = ((k * G + g) * p.N + n) * p.D + v * W;
      VecOf<Storage> x[W];
      load_square(static_cast<const Storage*>(matrix) + row * inputs + in, inputs, rows, columns, x);
      transpose(x, std::make_integer_sequence<int, W>());
      if constexpr (kPaired) {
        for (int i = 0; i < columns; i += 2) {
          store_pairs(panel + ((in + i) / 2 * G + g) * W, x[i], x[i + 1]);
        }
      } else {
        for (int i = 0; i < columns; ++i) store_in_row(panel + (in + i) * G * W, g, G, x[i]);
      }
    }
  }
}

// Vectors [begin, end) of units of head n, each a panel whose outputs are one vector of each gate.
template <class Storage, int G, class N>
void pack_fwd(const Problem& p, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels) {
  constexpr int W = kLanes<Compute<Storage>>;
  constexpr bool kPaired = std::is_same_v<N, Pair>;
  const int64_t size = (kPaired ? pairs(p.D) : p.D) * G * W;
  for (int64_t v = begin; v < end; ++v) {
    pack_rows<Storage, G>(p, p.weight_hh, p.D, k, n, v, static_cast<N*>(panels) + v * size);
  }
}

// The biases of the vector v of units of head n: (G, W).
template <class Storage, int G>
void load_bias(const LayerParams& p, int64_t k, int64_t n, int64_t v, Compute<Storage>* bias) {
  constexpr int W = kLanes<Compute<Storage>>;
  for (int g = 0; g < G; ++g) {
    const int64_t unit = ((k * G + g) * p.N + n) * p.D + v * W;
    const int units = int(p.D - v * W < W ? p.D - v * W : W);
    load(static_cast<const Storage*>(p.input.bias) + unit, units).store(bias + g * W);
  }
}

// The weights of the input likewise, with the bias as those of one feature more.
template <class Storage, int G>
void pack_input_vector(const LayerParams& p, int64_t k, int64_t n, int64_t v, Compute<Storage>* panel) {
  const Input& input = p.input;
  pack_rows<Storage, G>(p, input.weight_ih, input.I, k, n, v, panel);
  if (input.bias) load_bias<Storage, G>(p, k, n, v, panel + input.I * G * kLanes<Compute<Storage>>);
}

template <class Storage, int G>
void pack_input(const LayerParams& p, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels) {
  using E = Compute<Storage>;
  constexpr int W = kLanes<E>;
  const int64_t size = input_columns(p.input, 0) * G * W;
  for (int64_t v = begin; v < end; ++v) {
    pack_input_vector<Storage, G>(p, k, n, v, static_cast<E*>(panels) + v * size);
  }
}

// Sums[rows][G][W] = x[rows][inputs] times the vector v of units of every gate of a matrix (K, G, N, D, inputs), without
// a packed panel: what a matrix is worth that is used once, by few rows. The same sums, in the same order, as multiply()
// forms of the panel.
template <class Storage, int G, int MB, class A, class E>
void multiply_unpacked(const Problem& p, const void* matrix, int64_t inputs, int64_t k, int64_t n, int64_t v,
                       const A* rows, int64_t stride, E* sums) {
  constexpr int W = kLanes<E>;
  const int units = int(p.D - v * W < W ? p.D - v * W : W);
  for (int g = 0; g < G; ++g) {
    const int64_t row = ((k * G + g) * p.N + n) * p.D + v * W;
    VecOf<Storage> acc[MB];
    for (int i = 0; i < MB; ++i) acc[i] = VecOf<Storage>(0);
    for (int64_t in = 0; in < inputs; in += W) {
      const int columns = int(inputs - in < W ? inputs - in : W);
      VecOf<Storage> x[W];
      load_square(static_cast<const Storage*>(matrix) + row * inputs + in, inputs, units, columns, x);
      transpose(x, std::make_integer_sequence<int, W>());
      if constexpr (std::is_same_v<A, Pair>) {
        for (int j = 0; j < columns; j += 2) {
          const VecOf<Storage> both = side_by_side(x[j], x[j + 1]);
          for (int i = 0; i < MB; ++i) acc[i] = multiply_add(rows[i * stride + (in + j) / 2], both, acc[i]);
        }
      } else {
        for (int j = 0; j < columns; ++j) {
          for (int i = 0; i < MB; ++i) acc[i] = multiply_add(rows[i * stride + in + j], x[j], acc[i]);
        }
      }
    }
    for (int i = 0; i < MB; ++i) acc[i].store(sums + (i * G + g) * W);
  }
}

// Sums[W] = dpre[G * D_out] times the vector v of inputs of the matrix, likewise.
template <class Storage, int G, class E>
void pull_back_once(const Problem& p, int64_t k, int64_t n, int64_t v, const E* dpre, E* sums) {
  constexpr int W = kLanes<E>;
  const int units = int(p.D - v * W < W ? p.D - v * W : W);
  VecOf<Storage> acc(0);
  for (int g = 0; g < G; ++g) {
    const Storage* source = matrix<Storage, G>(p, k, g, n) + v * W;
    for (int64_t out = 0; out < p.D; ++out) {
      acc = multiply_add(dpre[g * p.D + out], load(source + out * p.D, units), acc);
    }
  }
  acc.store(sums);
}

XF_HD int64_t group_size(int64_t v, int64_t end) { return end - v < kGroup ? end - v : kGroup; }

// The group of vectors of units of head n from v, to a panel [G * D_out][group][W] of numbers N, whose outputs are the
// inputs of the matrix.
template <class Storage, int G, class N>
void pack_group(const Problem& p, int64_t k, int64_t n, int64_t v, int64_t group, N* panel) {
  constexpr int W = kLanes<Compute<Storage>>;
  const int64_t D = p.D;
  for (int g = 0; g < G; ++g) {
    const Storage* source = matrix<Storage, G>(p, k, g, n) + v * W;
    for (int64_t out = 0; out < D; ++out) {
      for (int64_t i = 0; i < group; ++i) {
        const int64_t left = D - (v + i) * W;
        store_in_row(panel, int(i), int(group), load(source + out * D + i * W, int(left < W ? left : W)));
      }
      panel += group * W;
    }
  }
}

// Vectors [begin, end) of units of head n, in groups.
template <class Storage, int G, class N>
void pack_bwd(const Problem& p, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels) {
  constexpr int W = kLanes<Compute<Storage>>;
  for (int64_t v = begin; v < end; v += kGroup) {
    pack_group<Storage, G>(p, k, n, v, group_size(v, end), static_cast<N*>(panels) + v * p.D * G * W);
  }
}

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
