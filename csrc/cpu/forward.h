// The forward pass of one job.
#pragma once

#include <algorithm>

#include "cpu/input_tiles.h"
#include "cpu/pack.h"
#include "cpu/pack_tiles.h"
#include "cpu/step.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

// Buffers, R = rows of the job: shared is exchange[2][R][stride] and carry[S][R][units]; own is sums[R][G][W] and
// cursors[R]. exchange holds h as the next step's product takes it: masked, and replaced where the next row resets, so
// that the threads of a team meet once per step. carry[0] is used only by cells that read h. input is rows of x, which
// several steps take, then their products.
template <class Cell, class Storage, bool kSave>
class Forward : Pass<Cell, Storage, LayerParams> {
  using Base = Pass<Cell, Storage, LayerParams>;
  using Base::G, Base::S, Base::W, Base::p_, Base::job_, Base::place_, Base::size_, Base::exchange_, Base::carry_,
      Base::sums_, Base::registers_, Base::watch_, Base::lanes, Base::in;
  using typename Base::E, typename Base::V;

 public:
  // One row in the current step.
  struct Cursor {
    const Storage* wx;    // (G, gate_stride), if there is no input
    const E* products;    // if there is, of the row, in (vectors, rows of InputBuffers, G, W)
    Storage* pre;         // (G, gate_stride)
    Storage* output;
    E* states;            // (S - 1, row_plane)
    const Storage* mask;  // may be nullptr
    int64_t b;
    bool last, cut;
    Source<Storage> replacement;  // of the state before the next step, if cut
  };

  Forward(const LayerParams& p, const Job& job)
      : Base(p, job, p.D, std::is_same_v<Storage, BFloat16> && !p.h_mask ? 1 : kParts),
        cursors_(reinterpret_cast<Cursor*>(sums_ + job.count * G * W)),
        input_(input_buffers(p.input, job.count, job.end - job.begin, G, W, sizeof(E), job.input_parts)),
        x_(static_cast<E*>(job.input)) {}

  void run() {
    for (int64_t i = 0; i < job_.count; ++i) start(i);
    int64_t active = job_.count;
    for (int64_t step = 0;; ++step) {
      while (active > 0 && place_.walk(job_.sequences[active - 1]).length <= step) --active;
      if (active == 0) break;
      watch_.to(kWaiting);
      if (!job_.goes_on()) return;
      if (p_.input.I && step % input_.steps == 0) {
        watch_.to(kInputProduct);
        multiply_input(step, active);
      }
      watch_.to(kOther);
      for (int64_t i = 0; i < active; ++i) cursors_[i] = cursor(i, step);
      const E* h = exchange_ + step % 2 * size_.exchange;
      E* next_h = exchange_ + (step + 1) % 2 * size_.exchange;
      watch_.to(kRecurrentProduct);
      this->split(h, active);
      this->back_and_forth(step, 1, [&](int64_t v, int64_t next_v) {
        watch_.to(kRecurrentProduct);
        product(v, active, h);
        watch_.to(kCell);
        for (int64_t i = 0; i < active; ++i) {
          advance(i, v, next_h);
          fetch(cursors_[i], next_v * W);
          registers_.keep_awake();
        }
      });
      watch_.to(kOther);
    }
  }

 private:
  // The products of the input for as many steps as there are buffers for, of which this is the first.
  void multiply_input(int64_t step, int64_t active) {
    if constexpr (takes_input<Storage>) {
      taken_ = 0;
      if constexpr (has_tiles<Storage>) {
        if (job_.input_parts) return multiply_input_by_tiles(step, active);
      }
    }
    if constexpr (takes_any_input<Storage>) {
      const int64_t I = p_.input.I, columns = input_columns(p_.input, 0);
      const int64_t rows = for_each_input(step, active, [&](int64_t i, const Storage* x) {
        std::copy_n(x, I, x_ + i * input_.stride);
        if (p_.input.bias) x_[i * input_.stride + I] = 1;
      });
      for (int64_t v = job_.begin; v < job_.end; ++v) {
        E* const products = input_products(v);
        if (job_.input_once) input_product_once(v, columns, rows, products);
        else multiply<G>(input_panel() + v * columns * G * W, columns, x_, input_.stride, rows, products);
      }
    }
  }

  E* input_panel() const { return static_cast<E*>(job_.input_panels); }

  // By weights that are not packed yet.
  void input_product_once(int64_t v, int64_t columns, int64_t rows, E* products) {
    if (rows > kUnpackedRows) {
      watch_.to(kPacking);
      pack_input_vector<Storage, G>(p_, job_.k, job_.n, v, input_panel());
      watch_.to(kInputProduct);
      return multiply<G>(input_panel(), columns, x_, input_.stride, rows, products);
    }
    product_unpacked(p_.input.weight_ih, p_.input.I, v, x_, input_.stride, rows, products);
    if (!p_.input.bias) return;
    E bias[G * W];
    load_bias<Storage, G>(p_, job_.k, job_.n, v, bias);
    for (int64_t i = 0; i < rows; ++i) add_bias(bias, products + i * G * W);
  }

  void multiply_input_by_tiles(int64_t step, int64_t active) {
    const InputPanels size = input_panels(p_.input, G, vectors(p_.D, W), W, sizeof(E), kPartsOf<Storage>);
    char* const panels = static_cast<char*>(job_.input_panels);
    SplitRows split_rows(x_, input_.rows, p_.input.I, kPartsOf<Storage>);
    bool large_row = false;
    const int64_t rows = for_each_input(step, active, [&](int64_t i, const Storage* x) {
      split_rows.set(i, x);
      large_row = large_row || split_rows.is_large(i);
    });
    registers_.set(kStrip);
    for (int64_t v = job_.begin; v < job_.end; ++v) {
      char* const panel = panels + (job_.input_once ? 0 : v * size.vector);
      bool large;
      if (job_.input_once) {
        watch_.to(kPacking);
        large = pack_tiled_input_vector<Storage, G>(p_, job_.k, job_.n, v, size, panel);
        watch_.to(kInputProduct);
      } else {
        large = reinterpret_cast<const bool*>(panels + size.flags)[v];
      }
      multiply_input_tiles<G, kPartsOf<Storage>>(panel, size, split_rows, rows, input_products(v));
      if (__builtin_expect(!large && !large_row, 1)) continue;
      const E* const bias = reinterpret_cast<const E*>(panel + size.bias);
      for_each_input(step, active, [&](int64_t i, const Storage* x) {
        if (large || split_rows.is_large(i)) multiply_input_row(v, x, bias, input_products(v) + i * G * W);
      });
    }
    if (job_.form != kTiles) registers_.release();  // nothing keeps them awake until the next products
  }

  // What tiles are not for: in float32.
  void multiply_input_row(int64_t v, const Storage* x, const E* bias, E* products) {
    multiply_unpacked<Storage, G, 1>(p_, p_.input.weight_ih, p_.input.I, job_.k, job_.n, v, x, 0, products);
    add_bias(bias, products);
  }

  void add_bias(const E* bias, E* products) {
    for (int g = 0; g < G; ++g) (V::load(products + g * W) + V::load(bias + g * W)).store(products + g * W);
  }

  // take(i, x) for each row x of the input that multiply_input() is about, i counted from 0. Returns how many.
  template <class Take>
  int64_t for_each_input(int64_t step, int64_t active, Take take) {
    int64_t rows = 0;
    for (int64_t last = step + input_.steps; step < last; ++step) {
      while (active > 0 && place_.walk(job_.sequences[active - 1]).length <= step) --active;
      for (int64_t i = 0; i < active; ++i, ++rows) {
        take(rows, static_cast<const Storage*>(p_.input.x) + place_.walk(job_.sequences[i]).row(step) * p_.input.I);
      }
    }
    return rows;
  }

  // (rows, G, W) for the vector v of units.
  E* input_products(int64_t v) { return x_ + input_.x + (v - job_.begin) * input_.rows * G * W; }

  // The vector v of units of gate g of a row's wx, or of its products.
  XF_HD V pre_of_input(const Cursor& row, int g, int64_t v) const {
    if constexpr (takes_input<Storage>) {
      if (p_.input.I) return V::load(row.products + (v * input_.rows * G + g) * W);
    }
    return load(row.wx + g * place_.gate_stride() + v * W, lanes(v * W));
  }

  void product(int64_t v, int64_t active, const E* h) {
    if constexpr (has_tiles<Storage>) {
      if (job_.form == kTiles) return product_of_tiles(v, active, h);
    }
    if constexpr (has_pairs<Storage>) {
      if (job_.form == kPairs) {
        const Pair* x = reinterpret_cast<const Pair*>(h);
        if (job_.once) return product_once(v, pairs(p_.D), x, active);
        const Pair* panel = static_cast<const Pair*>(job_.panels) + v * pairs(p_.D) * G * W;
        return multiply<G>(panel, pairs(p_.D), x, size_.stride, active, sums_);
      }
    }
    if (job_.once) product_once(v, p_.D, h, active);
    else this->template multiply_panel<G>(v, p_.D, h, active);
  }

  void product_of_tiles(int64_t v, int64_t active, const E* h) {
    const TilePanels size = tile_panels(p_.D, G, vectors(p_.D, W));
    const char* panels = static_cast<const char*>(job_.panels);
    const bool* large = reinterpret_cast<const bool*>(panels + size.flags) + v;
    this->template multiply_tiles<G, 1>(panels + v * size.vector, large, active, [&](int64_t i, int) {
      multiply_unpacked<Storage, G, 1>(p_, p_.weight_hh, p_.D, job_.k, job_.n, v, h + i * size_.stride, size_.stride,
                                       sums_ + i * G * W);
    });
  }

  // sums = h times the vector v of units of the matrix, whose panels have `columns` numbers, or pairs, of each unit.
  template <class A>
  void product_once(int64_t v, int64_t columns, const A* h, int64_t rows) {
    if (rows <= kUnpackedRows) return product_unpacked(p_.weight_hh, p_.D, v, h, size_.stride, rows, sums_);
    A* const panel = static_cast<A*>(job_.panels);
    watch_.to(kPacking);
    pack_rows<Storage, G>(p_, p_.weight_hh, p_.D, job_.k, job_.n, v, panel);
    watch_.to(kRecurrentProduct);
    multiply<G>(panel, columns, h, size_.stride, rows, sums_);
  }

  // sums = x times the vector v of units of a matrix (K, G, N, D, inputs).
  template <class A>
  void product_unpacked(const void* matrix, int64_t inputs, int64_t v, const A* x, int64_t stride, int64_t rows,
                        E* sums) {
    const auto multiply = [&](auto count, int64_t i) {
      multiply_unpacked<Storage, G, count>(p_, matrix, inputs, job_.k, job_.n, v, x + i * stride, stride,
                                           sums + i * G * W);
    };
    int64_t i = 0;
    for (; rows - i >= 4; i += 4) multiply(std::integral_constant<int, 4>(), i);
    for (; i < rows; ++i) multiply(std::integral_constant<int, 1>(), i);
  }

  // The state before the first step; where there is no step, it is the final one.
  void start(int64_t i) {
    const int64_t b = job_.sequences[i];
    const Walk walk = place_.walk(b);
    const int64_t cut = walk.length ? walk.cut(0) : -1;
    const Source<Storage> source = cut >= 0 ? place_.replacement(b, cut) : place_.initial(b);
    const Storage* mask = at(static_cast<const Storage*>(p_.h_mask), place_.sequence_state(b));
    for (int64_t u = job_.begin * W; u < job_.end * W; u += W) {
      V s[S];
      load_state(source, u, lanes(u), s);
      if (walk.length) keep(i, u, s, mask, exchange_);
      else finish(b, u, s);
    }
  }

  Cursor cursor(int64_t i, int64_t step) {
    const int64_t b = job_.sequences[i];
    const Walk walk = place_.walk(b);
    const int64_t row = walk.row(step), gates = place_.gates(row), state = place_.row_state(row);
    const bool last = step + 1 == walk.length;
    const int64_t cut = last ? -1 : walk.cut(step + 1);
    return {at(static_cast<const Storage*>(p_.wx), gates),
            p_.input.I ? input_products(0) + taken_++ * G * W : nullptr,
            at(static_cast<Storage*>(p_.pre), gates),
            static_cast<Storage*>(p_.output) + state,
            at(static_cast<E*>(p_.states), state),
            at(static_cast<const Storage*>(p_.h_mask), place_.sequence_state(b)),
            b, last, cut >= 0, cut >= 0 ? place_.replacement(b, cut) : Source<Storage>{}};
  }

  // Row i's vector v of units: the cell, on what the product left in sums.
  XF_HD void advance(int64_t i, int64_t v, E* next_h) {
    const Cursor& row = cursors_[i];
    const int64_t u = v * W;
    const int n = lanes(u);
    V pre[G], s[S], next[S];
    for (int g = 0; g < G; ++g) {
      pre[g] = V::load(sums_ + (i * G + g) * W) + pre_of_input(row, g, v);
      if constexpr (kSave) store(row.pre + g * place_.gate_stride() + u, pre[g], n);
    }
    for (int j = Cell::kReadsH ? 0 : 1; j < S; ++j) s[j] = V::load(in(carry_, i, u) + j * size_.plane);
    if constexpr (!Cell::kReadsH) s[0] = V(0);
    Cell::forward(pre, s, next);
    next[0] = rounded<Storage>(next[0]);
    store(row.output + u, next[0], n);
    if constexpr (kSave) store_others<E>(row.states + u, place_.row_plane(), n, next);
    if (row.last) return finish(row.b, u, next);
    if (row.cut) load_state(row.replacement, u, n, next);
    keep(i, u, next, row.mask, next_h);
  }

  // Into the cache, while the product of the next vector of units is formed, the memory that its step reads and writes.
  XF_HD void fetch(const Cursor& row, int64_t u) {
    if (!p_.input.I) {
      for (int g = 0; g < G; ++g) __builtin_prefetch(row.wx + g * place_.gate_stride() + u);
    }
    __builtin_prefetch(row.output + u, 1);
    if constexpr (kSave) {
      for (int g = 0; g < G; ++g) __builtin_prefetch(row.pre + g * place_.gate_stride() + u, 1);
      for (int j = 1; j < S; ++j) __builtin_prefetch(row.states + (j - 1) * place_.row_plane() + u, 1);
    }
  }

  // The state for the next step.
  XF_HD void keep(int64_t i, int64_t u, const V (&s)[S], const Storage* mask, E* next_h) {
    for (int j = Cell::kReadsH ? 0 : 1; j < S; ++j) s[j].store(in(carry_, i, u) + j * size_.plane);
    const V h = mask ? s[0] * load(mask + u, lanes(u)) : s[0];
    if constexpr (has_pairs<Storage>) {
      if (job_.form == kPairs) return store(reinterpret_cast<Storage*>(next_h + i * size_.stride) + u, h);
    }
    h.store(next_h + i * size_.stride + u);
  }

  // The final state.
  void finish(int64_t b, int64_t u, const V (&s)[S]) {
    const int64_t index = place_.sequence_state(b) + u;
    store(static_cast<Storage*>(p_.h_n) + index, s[0], lanes(u));
    store_others<E>(at(static_cast<E*>(p_.s_n), index), place_.sequence_plane(), lanes(u), s);
  }

  Cursor* const cursors_;
  const InputBuffers input_;
  E* const x_;
  int64_t taken_ = 0;  // of the products of the input
};

template <class Cell, class Storage>
void recurrence_fwd(const LayerParams& p, const Job& job) {
  if (p.pre) Forward<Cell, Storage, true>(p, job).run();
  else Forward<Cell, Storage, false>(p, job).run();
}

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
