// The backward pass: programs as in the forward pass, which walk back through all steps together.
//
// The gradient of h is R^T dpre. A program has the dpre of its own units and R's rows for them, so it computes what
// they add to the gradients of all units, and sends each program the sums for that one's units, float32. The other way,
// all dpre to all programs, would be G numbers of storage size for each unit and sequence instead of one float: twice
// the bytes for 16-bit storage, four times for float32. The sums are added up in the order of the programs, so results
// repeat bit for bit.
#pragma once

#include "cuda/partial_exchange.cuh"
#include "cuda/place.cuh"

namespace xlstm_fused::cuda {

// Four words of dpre side by side, as the product takes them.
template <class Kind, int G>
__device__ __forceinline__ void write_gates(char* at, const float (&dpre)[G]) {
  using Storage = typename Element<Kind>::Storage;
  static_assert(G == kBands, "other numbers of gates need another order of the inner dimension");
  Storage stored[G];
#pragma unroll
  for (int g = 0; g < G; ++g) from_float(dpre[g], stored[g]);
  if constexpr (sizeof(Storage) == 2) {
    *reinterpret_cast<uint2*>(at) = make_uint2(bits_of(stored[0]) | bits_of(stored[1]) << 16,
                                               bits_of(stored[2]) | bits_of(stored[3]) << 16);
  } else {
    using E = Element<Kind>;
    *reinterpret_cast<uint4*>(at) = make_uint4(E::operand(bits_of(stored[0])), E::operand(bits_of(stored[1])),
                                               E::operand(bits_of(stored[2])), E::operand(bits_of(stored[3])));
  }
}

// A job of the backward product: 32 units of the head, and a part of the program's own gates.
struct Job {
  int first_unit, split;
};

__device__ __forceinline__ Job job_of(const Plan& plan, int index) {
  const int groups = (plan.programs * plan.units + 31) / 32;
  return {index % groups * 32, index / groups};
}

__device__ __forceinline__ int jobs_of(const Plan& plan) {
  return (plan.programs * plan.units + 31) / 32 * plan.splits;
}

// The rows of R^T, which `weight_t` (K, N, D_in, D_out, G) holds, for a job.
template <class Kind, int G, int kTiles>
__device__ __forceinline__ MatrixRows<Kind> unit_rows(const Place<Kind, kTiles>& place, const Plan& plan,
                                                      const void* weight_t, Job job) {
  using Storage = typename Element<Kind>::Storage;
  const Problem& p = place.p;
  const auto* weight = static_cast<const Storage*>(weight_t);
  MatrixRows<Kind> rows;
#pragma unroll
  for (int band = 0; band < kBands; ++band) {
    const int64_t unit = job.first_unit + band * 8 + place.group;
    rows.row[band] = unit < p.D ? weight + ((place.k * p.N + place.n) * p.D + unit) * p.D * G : nullptr;
  }
  const int first = place.rank * plan.units * G, chunk = kChunkBytes / int(sizeof(Storage));
  const int limit = min(first + plan.units * G, int(p.D) * G);
  rows.first = first + job.split * plan.chunks * chunk;
  rows.limit = min(limit, rows.first + plan.chunks * chunk);
  rows.aligned = p.D * G * sizeof(Storage) % 16 == 0 && reinterpret_cast<uintptr_t>(weight) % 16 == 0;
  return rows;
}

// Returns the number of steps.
template <class Cell, class Kind, int kTiles, Exchange kExchange, int kRegisters>
__device__ __forceinline__ int64_t recurrence_bwd(const BackwardParams& p, const Plan& plan, const void* weight_t,
                                                  char* shared, const Task& task) {
  constexpr int G = Cell::G, S = Cell::S;
  constexpr int kFirstState = Cell::kReadsH ? 0 : 1;  // h is read, and has a gradient of its own, only where it must
  using Storage = typename Element<Kind>::Storage;
  using Here = Place<Kind, kTiles>;
  constexpr int kItems = Here::kItems;
  const Here place(p, plan, task);
  char* const operands = shared + kChunkBytes;
  for (int i = threadIdx.x; i < kTiles * kTile * plan.row_bytes / 4; i += blockDim.x) {
    reinterpret_cast<uint32_t*>(operands)[i] = 0;
  }
  const PartialExchange<kTiles, kExchange> exchange(shared, plan, task, place.columns());
  const int jobs = jobs_of(plan), warps = blockDim.x / 32;
  // A helper has a part in the product only.
  const bool helps = kExchange == Exchange::grid && place.warp * 8 >= plan.units;
  const auto rows_of = [&](int job) {
    return unit_rows<Kind, G, kTiles>(place, plan, weight_t, job_of(plan, place.warp + job * warps));
  };
  Matrix<Kind, kRegisters> matrix(Slots(shared + plan.fragments, blockDim.x), plan.shared_chunks, plan.chunks);
  for (int job = 0; place.warp + job * warps < jobs; ++job) matrix.keep(rows_of(job), job);
  const int64_t steps = place.steps();
  const auto walk = [&](int i) { return place.walk(i); };
  const auto row_of = [&](int i, int64_t step) {
    return step >= 0 && step < walk(i).length ? int32_t(walk(i).row(step)) : 0;
  };

  float dh[kItems], ds[kItems][S], reset_dh[kItems];
  // Of the step at hand: its row and those of the two before it, and what it reads.
  int32_t row[kItems], row_1[kItems], row_2[kItems];
  float pre[kItems][G], before[kItems][S], after[kItems][S], d_out[kItems];
  const auto load_after = [&](int i, int32_t from) {
    const int64_t at = place.in_row(from);
    if constexpr (Cell::kReadsH) after[i][0] = load_or_zero<Storage>(p.output, at);
#pragma unroll
    for (int j = 1; j < S; ++j) after[i][j] = load_or_zero<float>(p.states, at + (j - 1) * place.row_plane());
  };
  // What step `step` reads, where item i has that step; its row is row_of(step), the one before `previous`.
  const auto load_step = [&](int i, int64_t step, int32_t from, int32_t previous) {
    if (step < 0 || step >= walk(i).length) return;
#pragma unroll
    for (int g = 0; g < G; ++g) pre[i][g] = to_float(static_cast<const Storage*>(p.pre)[place.gate_in_row(from, g, G)]);
    d_out[i] = load_or_zero<Storage>(p.d_output, place.in_row(from));
    const bool first = step == 0;
    const void* source = first ? p.s0 : p.states;
    const int64_t at = first ? place.in_sequence(i) : place.in_row(previous);
    const int64_t plane = first ? place.sequence_plane() : place.row_plane();
    if constexpr (Cell::kReadsH) before[i][0] = load_or_zero<Storage>(first ? p.h0 : p.output, at);
#pragma unroll
    for (int j = 1; j < S; ++j) before[i][j] = load_or_zero<float>(source, at + (j - 1) * plane);
  };

#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const bool there = place.has_sequence(i) && place.has_unit();
    const int64_t at = there ? place.in_sequence(i) : 0;
    dh[i] = there ? load_or_zero<Storage>(p.d_h_n, at) : 0.0f;
    reset_dh[i] = 0.0f;
#pragma unroll
    for (int j = 1; j < S; ++j) {
      ds[i][j] = there ? load_or_zero<float>(p.d_s_n, at + (j - 1) * place.sequence_plane()) : 0.0f;
    }
    row[i] = row_of(i, steps - 1);
    row_1[i] = row_of(i, steps - 2);
    row_2[i] = row_of(i, steps - 3);
    load_step(i, steps - 1, row[i], row_1[i]);
    if (steps > 0 && steps == walk(i).length) load_after(i, row[i]);
  }
  __syncthreads();

#pragma unroll 1
  for (int64_t step = steps - 1; step >= 0; --step) {
    const int turn = int(steps - 1 - step);
    int32_t cut[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const bool active = step < walk(i).length;
      float dpre[G] = {};
      cut[i] = -1;
      if (active) {
        if (p.reset && (!place.backwards || step > 0)) {
          const int32_t source = place.backwards ? row_1[i] : row[i];
          if (p.reset[source]) cut[i] = source;
        }
        float s[S], next[S], dnext[S], ds_before[S];
        s[0] = next[0] = 0.0f;
        if constexpr (Cell::kReadsH) {
          s[0] = before[i][0];
          if (cut[i] >= 0) s[0] = load_or_zero<Storage>(p.reset_h, place.in_reset(i, cut[i]));
          next[0] = after[i][0];
        }
        dnext[0] = dh[i] + d_out[i];
        const int64_t at = place.in_row(row[i]);
#pragma unroll
        for (int j = 1; j < S; ++j) {
          s[j] = before[i][j];
          if (cut[i] >= 0) {
            s[j] = load_or_zero<float>(p.reset_s, place.in_reset(i, cut[i]) + (j - 1) * place.reset_plane());
          }
          next[j] = after[i][j];
          dnext[j] = ds[i][j] + load_or_zero<float>(p.d_states, at + (j - 1) * place.row_plane());
        }
        Cell::backward(pre[i], s, next, dnext, dpre, ds_before);
        if constexpr (Cell::kReadsH) ds[i][0] = ds_before[0];
#pragma unroll
        for (int g = 0; g < G; ++g) {
          const int64_t gate = place.gate_in_row(row[i], g, G);
          dpre[g] += load_or_zero<Storage>(p.d_pre, gate);
          store<Storage>(p.dpre, gate, dpre[g]);
        }
#pragma unroll
        for (int j = 1; j < S; ++j) {
          ds[i][j] = ds_before[j];
          if (cut[i] < 0) continue;
          if (p.dreset_s) {
            // Zero before the launch; where the state is a sequence's, several cuts add up.
            const int64_t at_reset = place.in_reset(i, cut[i]) + (j - 1) * place.reset_plane();
            static_cast<float*>(p.dreset_s)[at_reset] += ds[i][j];
          }
          ds[i][j] = 0.0f;
        }
      }
      if (helps) continue;
      write_gates<Kind, G>(operands + place.column(i) * plan.row_bytes + place.local_unit * G * int(sizeof(Storage)),
                           dpre);
    }
    __syncthreads();

    for (int job = 0; place.warp + job * warps < jobs; ++job) {
      const Job which = job_of(plan, place.warp + job * warps);
      const MatrixRows<Kind> rows = rows_of(job);
      Sums<kTiles> sums = {};
      const int first_chunk = which.split * plan.chunks;
      const char* operand = operands + place.group * plan.row_bytes + first_chunk * kChunkBytes + place.q * 16;
      if (job == 0) matrix.template multiply<true>(sums, rows, job, operand, plan.row_bytes);
      else matrix.template multiply<false>(sums, rows, job, operand, plan.row_bytes);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int band = 0; band < kBands; ++band) {
          const int unit = which.first_unit + band * 8;
          if (unit >= plan.programs * plan.units) continue;
          exchange.send(turn, which.split, tile, unit + place.group, place.q,
                        make_float2(sums.at(band, tile, 0), sums.at(band, tile, 1)));
        }
      }
    }
    exchange.arrive(turn);

    // Behind the exchange.
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t length = walk(i).length;
      if (step > 0 && step == length) load_after(i, row_1[i]);
      else if (step < length) {
#pragma unroll
        for (int j = kFirstState; j < S; ++j) after[i][j] = before[i][j];
      }
      load_step(i, step - 1, row_1[i], row_2[i]);
    }
    exchange.wait(turn);
#pragma unroll
    for (int i = 0; i < kItems; i += 2) {
      if (helps) continue;
      const float2 total = exchange.total(turn, i / 2, place.local_unit, place.q);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (step >= walk(i + e).length) continue;
        float& d = dh[i + e];
        d = e ? total.y : total.x;
        if (p.h_mask) d *= load_or_zero<Storage>(p.h_mask, place.in_sequence(i + e));
        if constexpr (Cell::kReadsH) d += ds[i + e][0];
        if (cut[i + e] < 0) continue;
        if (p.dreset_h && p.reset_per_row) store<Storage>(p.dreset_h, place.in_row(cut[i + e]), d);
        reset_dh[i + e] += d;
        d = 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      row[i] = row_1[i];
      row_1[i] = row_2[i];
      row_2[i] = row_of(i, step - 3);
    }
  }

#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (!place.has_sequence(i) || !place.has_unit()) continue;
    const int64_t at = place.in_sequence(i);
    store<Storage>(p.dh0, at, dh[i]);
    if (p.dreset_h && !p.reset_per_row) store<Storage>(p.dreset_h, at, reset_dh[i]);
#pragma unroll
    for (int j = 1; j < S; ++j) store<float>(p.ds0, at + (j - 1) * place.sequence_plane(), ds[i][j]);
  }
  finish<kExchange>();
  return steps;
}

}  // namespace xlstm_fused::cuda
