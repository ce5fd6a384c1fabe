// What the steps of both passes read and write: where a head's units lie in memory, and the state before a step.
#pragma once

#include "cpu/kernels.h"
#include "cpu/product.h"
#include "cpu/storage.h"
#include "cpu/tiles.h"
#include "rows.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

// A state in memory at unit 0 of a head: h, and the others `plane` elements apart. nullptr stands for zeros.
template <class Storage>
struct Source {
  const Storage* h;
  const Compute<Storage>* s;
  int64_t plane;
};

// p + index, and nullptr for nullptr.
template <class T>
XF_HD T* at(T* p, int64_t index) {
  return p ? p + index : nullptr;
}

// Indices of unit 0 of head n, direction k, in each of the arrays.
template <class Storage, int G>
struct Place {
  using E = Compute<Storage>;
  const Problem& p;
  int64_t k, n;

  XF_HD bool backwards() const { return (k == 1) != p.reverse; }
  XF_HD Walk walk(int64_t b) const { return Walk::of(p.rows, p.reset, b, backwards()); }

  // (P, K, G, N, D), gate 0; gates are gate_stride() apart.
  XF_HD int64_t gates(int64_t row) const { return ((row * p.K + k) * G * p.N + n) * p.D; }
  XF_HD int64_t gate_stride() const { return p.N * p.D; }
  // (P, K, N, D) and one plane of (S - 1, P, K, N, D).
  XF_HD int64_t row_state(int64_t row) const { return ((row * p.K + k) * p.N + n) * p.D; }
  XF_HD int64_t row_plane() const { return p.rows.P * p.K * p.N * p.D; }
  // (K, B, N, D) and one plane of (S - 1, K, B, N, D).
  XF_HD int64_t sequence_state(int64_t b) const { return ((k * p.rows.B + b) * p.N + n) * p.D; }
  XF_HD int64_t sequence_plane() const { return p.K * p.rows.B * p.N * p.D; }

  XF_HD int64_t reset_state(int64_t b, int64_t cut) const {
    return p.reset_per_row ? row_state(cut) : sequence_state(b);
  }
  XF_HD int64_t reset_plane() const { return p.reset_per_row ? row_plane() : sequence_plane(); }

  XF_HD Source<Storage> initial(int64_t b) const {
    const int64_t index = sequence_state(b);
    return {at(static_cast<const Storage*>(p.h0), index), at(static_cast<const E*>(p.s0), index), sequence_plane()};
  }

  // What replaces the state of sequence b where the reset of row `cut` does.
  XF_HD Source<Storage> replacement(int64_t b, int64_t cut) const {
    const int64_t index = reset_state(b, cut);
    return {at(static_cast<const Storage*>(p.reset_h), index), at(static_cast<const E*>(p.reset_s), index),
            reset_plane()};
  }
};

// The n units from u of a state, h first.
template <class Storage, int S>
XF_HD void load_state(const Source<Storage>& source, int64_t u, int n, VecOf<Storage> (&s)[S]) {
  s[0] = load_or_zero(at(source.h, u), n);
  for (int i = 1; i < S; ++i) s[i] = load_or_zero(at(source.s, (i - 1) * source.plane + u), n);
}

// Everything but h of a state to p, `plane` elements apart.
template <class E, int S>
XF_HD void store_others(E* p, int64_t plane, int n, const VecOf<E> (&s)[S]) {
  for (int i = 1; i < S; ++i) store(p + (i - 1) * plane, s[i], n);
}

// One thread's part of a job, in either pass: the arguments, and the buffers of the state.
template <class Cell, class Storage, class Params>
class Pass {
 protected:
  static constexpr int G = Cell::G, S = Cell::S;
  using E = Compute<Storage>;
  using V = VecOf<Storage>;
  static constexpr int W = kLanes<E>;

  // The rows that meet the packed matrix have `columns` elements, or where that is in tiles, so many in `parts` parts.
  Pass(const Params& p, const Job& job, int64_t columns, int parts)
      : p_(p), job_(job), place_{p, job.k, job.n}, size_(buffers(job.count, columns, p.D, W, sizeof(E))),
        exchange_(static_cast<E*>(job.shared)), carry_(exchange_ + 2 * size_.exchange),
        sums_(static_cast<E*>(job.own)), split_rows_(job.split_rows, job.count, columns, parts),
        watch_(job.seconds, kOther) {}

  // Before the products of a step: the parts of their rows, if the matrix is in tiles.
  void split(const E* x, int64_t rows) {
    if constexpr (has_tiles<Storage>) {
      for (int64_t i = 0; job_.form == kTiles && i < rows; ++i) split_rows_.set(i, x + i * size_.stride);
    }
  }

  // sums[rows][NP][W] = the split rows times a panel. Then once(i, j) for what is too large for tiles, in row i or in
  // the j-th of V vectors of units, whose flags are given.
  template <int NP, int V, class Once>
  void multiply_tiles(const void* panel, const bool* large, int64_t rows, Once once) {
    multiply_rows<NP>(registers_, static_cast<const BFloat16*>(panel), split_rows_, rows, sums_);
    for (int64_t i = 0; i < rows; ++i) {
      for (int j = 0; j < V; ++j) {
        if (__builtin_expect(split_rows_.is_large(i) || large[j], 0)) once(i, j);
      }
    }
  }

  // sums[rows][NP][W] = x[rows][columns] times the panel of the vectors of units from v.
  template <int NP>
  void multiply_panel(int64_t v, int64_t columns, const E* x, int64_t rows) const {
    const int64_t index = v * p_.D * G * W;
    if constexpr (can_be_bfloat16<Storage>) {
      if (job_.form == kHalves) {
        return multiply<NP>(static_cast<const BFloat16*>(job_.panels) + index, columns, x, size_.stride, rows, sums_);
      }
    }
    multiply<NP>(static_cast<const E*>(job_.panels) + index, columns, x, size_.stride, rows, sums_);
  }
  // take(v, next) for this thread's vectors of units, or for the first ones of groups of `size` of them, in ascending
  // order in every other step and in descending order in between: what of the matrix was read last in a step, and is in
  // the cache still, is read first in the next.
  template <class Take>
  void back_and_forth(int64_t step, int64_t size, Take take) const {
    const int64_t groups = (job_.end - job_.begin + size - 1) / size, last = groups - 1;
    for (int64_t i = 0; i < groups; ++i) {
      take(job_.begin + (step % 2 ? last - i : i) * size, job_.begin + (step % 2 ? last - i - 1 : i + 1) * size);
    }
  }

  // Units of the vector from u that exist.
  int lanes(int64_t u) const { return int(p_.D - u < W ? p_.D - u : W); }
  // Row i's units from u in one of the arrays of the state, such as carry_.
  E* in(E* plane, int64_t i, int64_t u) const { return plane + i * (size_.plane / job_.count) + u; }

  const Params& p_;
  const Job& job_;
  const Place<Storage, G> place_;
  const Buffers size_;
  E* const exchange_;
  E* const carry_;
  E* const sums_;
  SplitRows split_rows_;
  TileRegisters<has_tiles<Storage>> registers_;
  Stopwatch watch_;
};

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
