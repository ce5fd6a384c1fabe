// One step of a recurrence without its product, for heads whose matrix the device multiplies in less time by a launch of
// its own for every step: a matrix product of whatever library, then one of these kernels, a thread for each unit of
// each sequence. What passes from launch to launch lies in memory.
#pragma once

#include "cuda/place.cuh"
#include "cuda/step.h"

namespace xlstm_fused::cuda {

// Where the thread's numbers are: the arrays of a Step are in the order of the threads.
struct Item {
  int64_t index, b;
  Spot spot;
  Walk walk;

  __device__ __forceinline__ Item(const Problem& p, int64_t thread)
      : index(thread), b(thread / p.D % p.rows.B),
        spot(p, thread / p.D / p.rows.B % p.N, thread / p.D / p.rows.B / p.N, thread % p.D),
        walk(Walk::of(p.rows, p.reset, b, spot.backwards)) {}

  // Of gate g of G.
  __device__ __forceinline__ int64_t gate(int g, int gates) const {
    return ((index / spot.p.D) * gates + g) * spot.p.D + spot.unit;
  }
};

__device__ __forceinline__ int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

__device__ __forceinline__ int64_t items_of(const Problem& p) { return p.K * p.N * p.rows.B * p.D; }

template <class Storage, int S>
__device__ __forceinline__ void load_state(float (&s)[S], const void* h, const void* others, int64_t at,
                                           int64_t plane) {
  s[0] = load_or_zero<Storage>(h, at);
#pragma unroll
  for (int j = 1; j < S; ++j) s[j] = load_or_zero<float>(others, at + (j - 1) * plane);
}

template <int S>
__device__ __forceinline__ void store_others(void* others, int64_t at, int64_t plane, const float (&s)[S]) {
#pragma unroll
  for (int j = 1; j < S; ++j) store<float>(others, at + (j - 1) * plane, s[j]);
}

template <class Cell, class Kind>
__global__ void step_fwd_kernel(const __grid_constant__ ForwardParams p, const __grid_constant__ Step step) {
  constexpr int G = Cell::G, S = Cell::S;
  using Storage = typename Element<Kind>::Storage;
  if (thread_index() >= items_of(p)) return;
  const Item item(p, thread_index());
  const Spot& spot = item.spot;
  const int64_t at = spot.in_sequence(item.b), next_step = step.step + 1;
  float s[S];
  if (step.step < 0) {
    load_state<Storage>(s, p.h0, p.s0, at, spot.sequence_plane());
  } else {
    if (step.step >= item.walk.length) return;
    const int64_t row = item.walk.row(step.step);
    float pre[G], before[S];
#pragma unroll
    for (int g = 0; g < G; ++g) {
      pre[g] = load_or_zero<Storage>(p.wx, spot.gate_in_row(row, g, G)) + step.product[item.gate(g, G)];
      if (p.pre) store<Storage>(p.pre, spot.gate_in_row(row, g, G), pre[g]);
    }
    load_state<Storage>(before, Cell::kReadsH ? p.h_n : nullptr, p.s_n, at, spot.sequence_plane());
    Cell::forward(pre, before, s);
    store<Storage>(p.output, spot.in_row(row), s[0]);
    if (p.pre) store_others(p.states, spot.in_row(row), spot.row_plane(), s);
  }
  if (next_step < item.walk.length) {
    const int64_t cut = item.walk.cut(next_step);
    if (cut >= 0) load_state<Storage>(s, p.reset_h, p.reset_s, spot.in_reset(item.b, cut), spot.reset_plane());
    // What the product takes is masked as it was stored.
    Storage stored;
    from_float(s[0], stored);
    store<Storage>(step.operand, item.index, to_float(stored) * (p.h_mask ? load_or_zero<Storage>(p.h_mask, at) : 1));
  }
  store<Storage>(p.h_n, at, s[0]);
  store_others(p.s_n, at, spot.sequence_plane(), s);
}

template <class Cell, class Kind>
__global__ void step_bwd_kernel(const __grid_constant__ BackwardParams p, const __grid_constant__ Step step) {
  constexpr int G = Cell::G, S = Cell::S;
  using Storage = typename Element<Kind>::Storage;
  if (thread_index() >= items_of(p)) return;
  const Item item(p, thread_index());
  const Spot& spot = item.spot;
  const Walk& walk = item.walk;
  const int64_t at = spot.in_sequence(item.b), plane = spot.sequence_plane(), now = step.step;
  float* const dh_beside = step.carry + at;
  float* const dreset_sum = dh_beside + p.K * p.rows.B * p.N * p.D;
  // The gradient of the state after this step.
  float d[S];
  if (now + 1 > walk.length) return;
  if (now + 1 == walk.length) {
    load_state<Storage>(d, p.d_h_n, p.d_s_n, at, plane);
  } else {
    load_state<Storage>(d, nullptr, p.ds0, at, plane);
    d[0] = step.product[item.index];
    if (p.h_mask) d[0] *= load_or_zero<Storage>(p.h_mask, at);
    if constexpr (Cell::kReadsH) d[0] += *dh_beside;
    const int64_t cut = walk.cut(now + 1);
    if (cut >= 0) {
      if (p.dreset_h && p.reset_per_row) store<Storage>(p.dreset_h, spot.in_row(cut), d[0]);
      *dreset_sum += d[0];
      d[0] = 0;
    }
  }
  if (now < 0) {
    store<Storage>(p.dh0, at, d[0]);
    store_others(p.ds0, at, plane, d);
    if (p.dreset_h && !p.reset_per_row) store<Storage>(p.dreset_h, at, *dreset_sum);
    return;
  }
  const int64_t row = walk.row(now), in_row = spot.in_row(row), cut = walk.cut(now);
  float pre[G], before[S], after[S], dpre[G], d_before[S];
#pragma unroll
  for (int g = 0; g < G; ++g) pre[g] = load_or_zero<Storage>(p.pre, spot.gate_in_row(row, g, G));
  const auto load_before = [&](const void* h, const void* others, int64_t from, int64_t between) {
    load_state<Storage>(before, Cell::kReadsH ? h : nullptr, others, from, between);
  };
  if (cut >= 0) load_before(p.reset_h, p.reset_s, spot.in_reset(item.b, cut), spot.reset_plane());
  else if (now == 0) load_before(p.h0, p.s0, at, plane);
  else load_before(p.output, p.states, spot.in_row(walk.row(now - 1)), spot.row_plane());
  load_state<Storage>(after, Cell::kReadsH ? p.output : nullptr, p.states, in_row, spot.row_plane());
  d[0] += load_or_zero<Storage>(p.d_output, in_row);
#pragma unroll
  for (int j = 1; j < S; ++j) d[j] += load_or_zero<float>(p.d_states, in_row + (j - 1) * spot.row_plane());
  Cell::backward(pre, before, after, d, dpre, d_before);
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int64_t gate = spot.gate_in_row(row, g, G);
    dpre[g] += load_or_zero<Storage>(p.d_pre, gate);
    store<Storage>(p.dpre, gate, dpre[g]);
    store<Storage>(step.operand, item.gate(g, G), dpre[g]);
  }
  if constexpr (Cell::kReadsH) *dh_beside = d_before[0];
  if (cut >= 0) {
#pragma unroll
    for (int j = 1; j < S; ++j) {
      if (p.dreset_s) {
        // Zero before the first step; where the state is a sequence's, several cuts add up.
        static_cast<float*>(p.dreset_s)[spot.in_reset(item.b, cut) + (j - 1) * spot.reset_plane()] += d_before[j];
      }
      d_before[j] = 0;
    }
  }
  store_others(p.ds0, at, plane, d_before);
}

}  // namespace xlstm_fused::cuda
