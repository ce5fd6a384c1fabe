// The forward pass: programs with `units` units each of one head, direction and tile of sequences, which walk through
// all steps together. Each has its rows of R and keeps the state of its units in registers; h goes to all of them.
#pragma once

#include "cuda/hidden_exchange.cuh"
#include "cuda/input_product.cuh"
#include "cuda/place.cuh"

namespace xlstm_fused::cuda {

// Returns the number of steps.
template <class Cell, class Kind, int kTiles, Exchange kExchange, int kRegisters>
__device__ __forceinline__ int64_t recurrence_fwd(const ForwardParams& p, const Input& input, const Plan& plan,
                                                  char* shared, const Task& task) {
  constexpr int G = Cell::G, S = Cell::S;
  using Storage = typename Element<Kind>::Storage;
  using Here = Place<Kind, kTiles>;
  constexpr int kItems = Here::kItems;
  const Here place(p, plan, task);
  const HiddenExchange<Kind, kTiles, kExchange> exchange(shared, plan, task, place.columns());
  const int64_t steps = place.steps();
  if (kExchange == Exchange::grid && place.warp * 8 >= plan.units) {
    // A helper: fetches what the others compute with.
#pragma unroll 1
    for (int64_t step = 0; step < steps; ++step) exchange.wait(step);
    finish<kExchange>();
    return steps;
  }
  const MatrixRows<Kind> weights = gate_rows<Kind, G, kTiles>(place, p.weight_hh, p.D);
  const Slots slots(shared + plan.fragments, plan.units * 4);
  Matrix<Kind, kRegisters> matrix(slots, plan.shared_chunks, plan.chunks);
  matrix.keep(weights, 0);
  // Else wx is given. W_ih is in the slots after those of R.
  const bool forms_wx = kExchange != Exchange::grid && input.I > 0;
  InputProduct<Kind, G, kTiles> product(input, slots, plan.shared_chunks);
  if (forms_wx) product.keep(place);

  float state[kItems][S], mask[kItems];
  Ahead<kTiles> ahead = {};
  int32_t row[kItems], next_row[kItems];
  const auto walk = [&](int i) { return place.walk(i); };
  // The state that a cut before `step` puts in the place of item i's.
  const auto replace = [&](int i, int64_t cut) {
    const int64_t at = place.in_reset(i, cut);
    state[i][0] = load_or_zero<Storage>(p.reset_h, at);
#pragma unroll
    for (int j = 1; j < S; ++j) state[i][j] = load_or_zero<float>(p.reset_s, at + (j - 1) * place.reset_plane());
  };
  // Begins to load wx of step `step`, or x to form it, from rows `from`.
  const auto load_ahead = [&](int64_t step, const int32_t (&from)[kItems]) {
    int32_t there[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) there[i] = step < walk(i).length ? from[i] : -1;
    if (forms_wx) {
      product.load(place, there, ahead);
      return;
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (there[i] < 0) continue;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        ahead.wx(i, g) = bits_of(static_cast<const Storage*>(p.wx)[place.gate_in_row(there[i], g, G)]);
      }
    }
  };
  const auto wx = [&](int i, int g) {
    const uint32_t bits = ahead.wx(i, g);
    return forms_wx ? bits_float(bits) : to_float(of_bits<Storage>(bits));
  };
  const auto row_of = [&](int i, int64_t step) { return step < walk(i).length ? int32_t(walk(i).row(step)) : 0; };

#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const bool there = place.has_sequence(i) && place.has_unit();
    const int64_t at = there ? place.in_sequence(i) : 0;
    state[i][0] = there ? load_or_zero<Storage>(p.h0, at) : 0.0f;
#pragma unroll
    for (int j = 1; j < S; ++j) {
      state[i][j] = there ? load_or_zero<float>(p.s0, at + (j - 1) * place.sequence_plane()) : 0.0f;
    }
    mask[i] = there && p.h_mask ? load_or_zero<Storage>(p.h_mask, at) : 1.0f;
    row[i] = row_of(i, 0);
    next_row[i] = row_of(i, 1);
    if (walk(i).length > 0) {
      const int64_t cut = walk(i).cut(0);
      if (cut >= 0) replace(i, cut);
    }
    exchange.write(0, place.column(i), place.unit, state[i][0] * mask[i]);
  }
  load_ahead(0, row);
  if (steps > 0) exchange.send(0);
  if (forms_wx) product.form(ahead);

#pragma unroll 1
  for (int64_t step = 0; step < steps; ++step) {
    exchange.wait(step);
    Sums<kTiles> sums = {};
    const char* operand = exchange.row(step, place.group) + place.q * 16;
    matrix.template multiply<true>(sums, weights, 0, operand, plan.row_bytes);

    float pre[kItems][G], next[kItems][S];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
#pragma unroll
      for (int g = 0; g < G; ++g) pre[i][g] = wx(i, g) + sums.at(g, i / 2, i % 2);
    }
    // Behind the exchange and the product of the next step.
    load_ahead(step + 1, next_row);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      Cell::forward(pre[i], state[i], next[i]);
      if (step >= walk(i).length) continue;
      Storage stored;
      from_float(next[i][0], stored);
      state[i][0] = next[i][0] = to_float(stored);
#pragma unroll
      for (int j = 1; j < S; ++j) state[i][j] = next[i][j];
      if (p.reset && step + 1 < walk(i).length) {
        const int32_t source = place.backwards ? row[i] : next_row[i];
        if (p.reset[source]) replace(i, source);
      }
    }
    if (step + 1 < steps) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        exchange.write(step + 1, place.column(i), place.unit, state[i][0] * mask[i]);
      }
      exchange.send(step + 1);
    }
    // Nobody waits for these.
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (step < walk(i).length) {
        const int64_t at = place.in_row(row[i]);
        store<Storage>(p.output, at, next[i][0]);
        if (p.pre) {
#pragma unroll
          for (int g = 0; g < G; ++g) store<Storage>(p.pre, place.gate_in_row(row[i], g, G), pre[i][g]);
#pragma unroll
          for (int j = 1; j < S; ++j) store<float>(p.states, at + (j - 1) * place.row_plane(), next[i][j]);
        }
      }
      row[i] = next_row[i];
      next_row[i] = row_of(i, step + 2);
    }
    if (forms_wx) {
      product.prefetch(place, next_row);
      product.form(ahead);
    }
  }

#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (!place.has_sequence(i) || !place.has_unit()) continue;
    const int64_t at = place.in_sequence(i);
    store<Storage>(p.h_n, at, state[i][0]);
#pragma unroll
    for (int j = 1; j < S; ++j) store<float>(p.s_n, at + (j - 1) * place.sequence_plane(), state[i][j]);
  }
  finish<kExchange>();
  return steps;
}

}  // namespace xlstm_fused::cuda
