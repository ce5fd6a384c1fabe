// The backward pass of one job: it walks the forward pass's steps in reverse.
#pragma once

#include <algorithm>

#include "cpu/pack.h"
#include "cpu/pack_tiles.h"
#include "cpu/step.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

// Buffers, R = rows of the job: shared is exchange[2][R][stride], the gradient of pre in the step at hand, then carry
// and resets, each [S][R][units]: gradients of the state after that step, and of each sequence's reset state. Own is
// sums[R][kGroup][W] and cursors[R].
template <class Cell, class Storage>
class Backward : Pass<Cell, Storage, BackwardParams> {
  using Base = Pass<Cell, Storage, BackwardParams>;
  using Base::G, Base::S, Base::W, Base::p_, Base::job_, Base::place_, Base::size_, Base::exchange_, Base::carry_,
      Base::sums_, Base::registers_, Base::watch_, Base::lanes, Base::in;
  using typename Base::E, typename Base::V;

 public:
  // One row in the current step.
  struct Cursor {
    int64_t gates, state;    // indices of unit 0
    const Storage* mask;     // may be nullptr
    Source<Storage> before;  // the state that the step started from
    bool cut;                // whether that was a reset state
    Storage* dreset_h;       // of this row, nullptr if the gradient goes to the sequence's sum or nowhere
    E* dreset_s;
  };

  Backward(const BackwardParams& p, const Job& job)
      : Base(p, job, G * p.D, kParts), resets_(carry_ + S * size_.plane),
        cursors_(reinterpret_cast<Cursor*>(sums_ + job.count * kGroup * W)) {}

  void run() {
    for (int64_t i = 0; i < job_.count; ++i) start(i);
    const int64_t longest = job_.count ? place_.walk(job_.sequences[0]).length : 0;
    int64_t active = 0;
    for (int64_t step = longest - 1; step >= 0; --step) {
      while (active < job_.count && place_.walk(job_.sequences[active]).length > step) ++active;
      for (int64_t i = 0; i < active; ++i) cursors_[i] = cursor(i, step);
      E* dpre = exchange_ + step % 2 * size_.exchange;
      watch_.to(kCell);
      for (int64_t i = 0; i < active; ++i) {
        const Ahead ahead = ahead_of(i, step);
        for (int64_t v = job_.begin; v < job_.end; ++v) {
          fetch(ahead, v * W);
          pointwise(i, v * W, dpre);
          registers_.keep_awake();
        }
      }
      watch_.to(kWaiting);
      if (!job_.goes_on()) return;
      watch_.to(kRecurrentProduct);
      this->split(dpre, active);
      this->back_and_forth(step, kGroup, [&](int64_t v, int64_t) { pull_back(v, active, dpre); });
      watch_.to(kOther);
    }
    for (int64_t i = 0; i < job_.count; ++i) finish(i);
  }

 private:
  bool sums_resets() const { return !p_.reset_per_row && (p_.dreset_h || p_.dreset_s); }

  void start(int64_t i) {
    const int64_t index = place_.sequence_state(job_.sequences[i]);
    const Source<Storage> final{at(static_cast<const Storage*>(p_.d_h_n), index),
                                at(static_cast<const E*>(p_.d_s_n), index), place_.sequence_plane()};
    for (int64_t u = job_.begin * W; u < job_.end * W; u += W) {
      V ds[S];
      load_state(final, u, lanes(u), ds);
      for (int j = 0; j < S; ++j) ds[j].store(in(carry_, i, u) + j * size_.plane);
      for (int j = 0; j < S && sums_resets(); ++j) V(0).store(in(resets_, i, u) + j * size_.plane);
    }
  }

  Cursor cursor(int64_t i, int64_t step) const {
    const int64_t b = job_.sequences[i];
    const Walk walk = place_.walk(b);
    const int64_t row = walk.row(step), cut = walk.cut(step);
    Cursor c{place_.gates(row), place_.row_state(row),
             at(static_cast<const Storage*>(p_.h_mask), place_.sequence_state(b)), {}, cut >= 0, nullptr, nullptr};
    if (cut >= 0) {
      c.before = place_.replacement(b, cut);
      if (p_.reset_per_row) {
        c.dreset_h = at(static_cast<Storage*>(p_.dreset_h), place_.row_state(cut));
        c.dreset_s = at(static_cast<E*>(p_.dreset_s), place_.row_state(cut));
      }
    } else if (step == 0) {
      c.before = place_.initial(b);
    } else {
      const int64_t index = place_.row_state(walk.row(step - 1));
      c.before = {static_cast<const Storage*>(p_.output) + index, at(static_cast<const E*>(p_.states), index),
                  place_.row_plane()};
    }
    return c;
  }

  // Where a row's next step, which is the one before in its sequence, reads.
  struct Ahead {
    const Storage *pre, *d_output;
    const E* before;
  };

  Ahead ahead_of(int64_t i, int64_t step) const {
    const Walk walk = place_.walk(job_.sequences[i]);
    const int64_t row = walk.row(std::max<int64_t>(step - 1, 0)), before = walk.row(std::max<int64_t>(step - 2, 0));
    return {static_cast<const Storage*>(p_.pre) + place_.gates(row),
            at(static_cast<const Storage*>(p_.d_output), place_.row_state(row)),
            static_cast<const E*>(p_.states) + place_.row_state(before)};
  }

  // Into the cache what a row's next step reads of the units from u. That is memory in more places at a time than a
  // processor fetches ahead of by itself.
  XF_HD void fetch(const Ahead& ahead, int64_t u) const {
    for (int g = 0; g < G; ++g) __builtin_prefetch(ahead.pre + g * place_.gate_stride() + u);
    for (int j = 1; j < S; ++j) __builtin_prefetch(ahead.before + (j - 1) * place_.row_plane() + u);
    if (ahead.d_output) __builtin_prefetch(ahead.d_output + u);
  }

  // Row i's units from u: gradients of pre and, but for the path through the product, of the state before.
  XF_HD void pointwise(int64_t i, int64_t u, E* exchange) {
    const Cursor& row = cursors_[i];
    const int n = lanes(u);
    V pre[G], s[S], next[S], dnext[S], dpre[G], ds[S];
    const int64_t gates = row.gates + u, state = row.state + u;
    const Storage* saved = static_cast<const Storage*>(p_.pre) + gates;
    for (int g = 0; g < G; ++g) pre[g] = load(saved + g * place_.gate_stride(), n);
    load_before(row, u, n, s);
    load_after(state, n, next);
    dnext[0] = V::load(in(carry_, i, u)) + load_or_zero(at(static_cast<const Storage*>(p_.d_output), state), n);
    for (int j = 1; j < S; ++j) {
      const E* d_state = at(static_cast<const E*>(p_.d_states), state + (j - 1) * place_.row_plane());
      dnext[j] = V::load(in(carry_, i, u) + j * size_.plane) + load_or_zero(d_state, n);
    }
    Cell::backward(pre, s, next, dnext, dpre, ds);
    for (int g = 0; g < G; ++g) {
      const int64_t index = gates + g * place_.gate_stride();
      if (p_.d_pre) dpre[g] = dpre[g] + load(static_cast<const Storage*>(p_.d_pre) + index, n);
      store(static_cast<Storage*>(p_.dpre) + index, dpre[g], n);
      store(exchange + i * size_.stride + g * p_.D + u, dpre[g], n);
    }
    keep_others(i, u, n, ds);
  }

  XF_HD void load_before(const Cursor& row, int64_t u, int n, V (&s)[S]) {
    Source<Storage> before = row.before;
    if constexpr (!Cell::kReadsH) before.h = nullptr;
    load_state(before, u, n, s);
  }

  XF_HD void load_after(int64_t state, int n, V (&next)[S]) {
    next[0] = Cell::kReadsH ? load(static_cast<const Storage*>(p_.output) + state, n) : V(0);
    const E* others = at(static_cast<const E*>(p_.states), state);
    for (int j = 1; j < S; ++j) next[j] = load(others + (j - 1) * place_.row_plane(), n);
  }

  // The gradient of the state before the step, h's apart: to the carry, or to the reset state that cut the sequence.
  XF_HD void keep_others(int64_t i, int64_t u, int n, V (&ds)[S]) {
    const Cursor& row = cursors_[i];
    if constexpr (Cell::kReadsH) ds[0].store(in(carry_, i, u));
    if (row.cut) {
      if (row.dreset_s) store_others<E>(row.dreset_s + u, place_.row_plane(), n, ds);
      for (int j = 1; j < S; ++j) {
        if (sums_resets()) add(ds[j], in(resets_, i, u) + j * size_.plane);
        ds[j] = V(0);
      }
    }
    for (int j = 1; j < S; ++j) ds[j].store(in(carry_, i, u) + j * size_.plane);
  }

  XF_HD void add(V x, E* sum) { (V::load(sum) + x).store(sum); }

  // The gradient of h before the step, for the group of vectors from v.
  void pull_back(int64_t v, int64_t active, const E* dpre) {
    switch (group_size(v, job_.end)) {
      case 1: return pull_back_group<1>(v, active, dpre);
      case 2: return pull_back_group<2>(v, active, dpre);
      case 3: return pull_back_group<3>(v, active, dpre);
      default: return pull_back_group<kGroup>(v, active, dpre);
    }
  }

  template <int NV>
  void pull_back_group(int64_t v, int64_t active, const E* dpre) {
    watch_.to(kRecurrentProduct);
    multiply_panel<NV>(v, active, dpre);
    watch_.to(kCell);
    for (int64_t i = 0; i < active; ++i) {
      for (int j = 0; j < NV; ++j) keep_h(i, (v + j) * W, V::load(sums_ + (i * NV + j) * W));
    }
  }

  template <int NV>
  void multiply_panel(int64_t v, int64_t active, const E* dpre) {
    if constexpr (has_tiles<Storage>) {
      if (job_.form == kTiles) {
        const TilePanels size = tile_panels(G * p_.D, 1, vectors(p_.D, W));
        const char* panels = static_cast<const char*>(job_.panels);
        const bool* large = reinterpret_cast<const bool*>(panels + size.flags) + v;
        return this->template multiply_tiles<NV, NV>(panels + v * size.vector, large, active, [&](int64_t i, int j) {
          const E* x = dpre + i * size_.stride;
          pull_back_once<Storage, G>(p_, job_.k, job_.n, v + j, x, sums_ + (i * NV + j) * W);
        });
      }
    }
    if (!job_.once) return Base::template multiply_panel<NV>(v, G * p_.D, dpre, active);
    E* const panel = static_cast<E*>(job_.panels);
    watch_.to(kPacking);
    pack_group<Storage, G>(p_, job_.k, job_.n, v, NV, panel);
    watch_.to(kRecurrentProduct);
    multiply<NV>(panel, G * p_.D, dpre, size_.stride, active, sums_);
  }

  XF_HD void keep_h(int64_t i, int64_t u, V dh) {
    const Cursor& row = cursors_[i];
    if (row.mask) dh = dh * load(row.mask + u, lanes(u));
    if constexpr (Cell::kReadsH) dh = dh + V::load(in(carry_, i, u));
    if (row.cut) {
      if (row.dreset_h) store(row.dreset_h + u, dh, lanes(u));
      if (sums_resets()) add(dh, in(resets_, i, u));
      dh = V(0);
    }
    dh.store(in(carry_, i, u));
  }

  void finish(int64_t i) {
    const int64_t index = place_.sequence_state(job_.sequences[i]);
    for (int64_t u = job_.begin * W; u < job_.end * W; u += W) {
      finish_state(in(carry_, i, u), u, static_cast<Storage*>(p_.dh0) + index, at(static_cast<E*>(p_.ds0), index));
      if (!sums_resets()) continue;
      finish_state(in(resets_, i, u), u, at(static_cast<Storage*>(p_.dreset_h), index),
                   at(static_cast<E*>(p_.dreset_s), index));
    }
  }

  // One state's gradient out of a buffer to memory; either target may be nullptr.
  void finish_state(const E* from, int64_t u, Storage* dh, E* ds) {
    V d[S];
    for (int j = 0; j < S; ++j) d[j] = V::load(from + j * size_.plane);
    if (dh) store(dh + u, d[0], lanes(u));
    if (ds) store_others<E>(ds + u, place_.sequence_plane(), lanes(u), d);
  }

  E* const resets_;
  Cursor* const cursors_;
};

template <class Cell, class Storage>
void recurrence_bwd(const BackwardParams& p, const Job& job) {
  Backward<Cell, Storage>(p, job).run();
}

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
