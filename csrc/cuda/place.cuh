// Where the numbers of a problem lie, and which of them a thread has: one unit, and columns 2 q and 2 q + 1 of each tile
// of sequences.
#pragma once

#include "cuda/product.cuh"
#include "params.h"

namespace xlstm_fused::cuda {

template <class Storage>
__device__ __forceinline__ float load_or_zero(const void* p, int64_t index) {
  return p ? to_float(static_cast<const Storage*>(p)[index]) : 0.0f;
}

template <class Storage>
__device__ __forceinline__ void store(void* p, int64_t index, float x) {
  from_float(x, static_cast<Storage*>(p)[index]);
}

// One unit of one head and direction in each of the arrays.
struct Spot {
  const Problem& p;
  const int64_t n, k;
  const bool backwards;
  const int64_t unit;

  __device__ __forceinline__ Spot(const Problem& problem, int64_t head, int64_t direction, int64_t unit_of_head)
      : p(problem), n(head), k(direction), backwards((direction == 1) != problem.reverse), unit(unit_of_head) {}

  // Indices into arrays over rows, of states and of gates, and into arrays over sequences; and the distance between
  // the planes of states.
  __device__ __forceinline__ int64_t in_row(int64_t row) const { return ((row * p.K + k) * p.N + n) * p.D + unit; }
  __device__ __forceinline__ int64_t gate_in_row(int64_t row, int gate, int gates) const {
    return (((row * p.K + k) * gates + gate) * p.N + n) * p.D + unit;
  }
  __device__ __forceinline__ int64_t in_sequence(int64_t b) const {
    return ((k * p.rows.B + b) * p.N + n) * p.D + unit;
  }
  __device__ __forceinline__ int64_t row_plane() const { return p.rows.P * p.K * p.N * p.D; }
  __device__ __forceinline__ int64_t sequence_plane() const { return p.K * p.rows.B * p.N * p.D; }

  // Where the reset state of sequence b lies, by the row that cuts; and the distance between its planes.
  __device__ __forceinline__ int64_t in_reset(int64_t b, int64_t cut) const {
    return p.reset_per_row ? in_row(cut) : in_sequence(b);
  }
  __device__ __forceinline__ int64_t reset_plane() const { return p.reset_per_row ? row_plane() : sequence_plane(); }
};

// What a program works on: its part of a head, direction and tile of the batch.
struct Task {
  int rank;  // of the program in its group
  int n, k, tile;
  // Exchange grid: the group's words, and the tag of the task's step 0.
  uint64_t* words;
  uint32_t tag;
};

template <class Kind, int kTiles>
struct Place : Spot {
  static constexpr int kItems = 2 * kTiles;  // sequences of a thread
  const int rank;  // of the program in its group
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, q = lane % 4;
  const int local_unit;  // within the program; a helper's is beyond plan.units
  const int64_t tile;

  __device__ __forceinline__ Place(const Problem& problem, const Plan& plan, const Task& task)
      : Spot(problem, task.n, task.k, unit_of(problem, plan, task)), rank(task.rank), local_unit(warp * 8 + group),
        tile(task.tile) {}

  static __device__ __forceinline__ int64_t unit_of(const Problem& problem, const Plan& plan, const Task& task) {
    const int local = int(threadIdx.x / 32 * 8 + threadIdx.x % 32 / 4);
    return local < plan.units ? int64_t(task.rank) * plan.units + local : problem.D;
  }

  __device__ __forceinline__ bool has_unit() const { return unit < p.D; }

  // Column of item i in the tile of kTiles * 8 sequences.
  __device__ __forceinline__ int column(int i) const { return i / 2 * kTile + 2 * q + i % 2; }
  __device__ __forceinline__ int64_t sequence(int i) const { return tile * kTiles * kTile + column(i); }
  __device__ __forceinline__ bool has_sequence(int i) const { return sequence(i) < p.rows.B; }

  // Length 0 where there is no such sequence or unit.
  __device__ __forceinline__ Walk walk(int i) const {
    const int64_t b = sequence(i);
    if (!has_sequence(i) || !has_unit()) return {p.rows, 0, 0, backwards, p.reset};
    return Walk::of(p.rows, p.reset, b, backwards);
  }

  // Of the tile, those that there are.
  __device__ __forceinline__ int columns() const {
    return int(min(int64_t(kTiles * kTile), p.rows.B - tile * kTiles * kTile));
  }

  // Of the longest sequence of the tile: all programs of the head take as many steps.
  __device__ __forceinline__ int64_t steps() const {
    int64_t longest = 0;
    for (int column = 0; column < kTiles * kTile; ++column) {
      const int64_t b = tile * kTiles * kTile + column;
      if (b >= p.rows.B) break;
      const int64_t length = sequence_length(p.rows, b);
      longest = length > longest ? length : longest;
    }
    return longest;
  }

  // Those of item i.
  __device__ __forceinline__ int64_t in_sequence(int i) const { return Spot::in_sequence(sequence(i)); }
  __device__ __forceinline__ int64_t in_reset(int i, int64_t cut) const { return Spot::in_reset(sequence(i), cut); }
};

// The rows for a job of `matrix` (K, G, N, D, width), R or W_ih: the gates of the warp's eight units, so that a thread
// gets all gates of its unit.
template <class Kind, int G, int kTiles>
__device__ __forceinline__ MatrixRows<Kind> gate_rows(const Place<Kind, kTiles>& place, const void* matrix,
                                                      int64_t width) {
  using Storage = typename Element<Kind>::Storage;
  static_assert(G <= kBands, "more gates than bands of a job");
  const Problem& p = place.p;
  const auto* weight = static_cast<const Storage*>(matrix);
  MatrixRows<Kind> rows;
#pragma unroll
  for (int g = 0; g < kBands; ++g) {
    const bool there = g < G && place.has_unit();
    rows.row[g] = there ? weight + (((place.k * G + g) * p.N + place.n) * p.D + place.unit) * width : nullptr;
  }
  rows.first = 0;
  rows.limit = int(width);
  rows.aligned = width * sizeof(Storage) % 16 == 0 && reinterpret_cast<uintptr_t>(weight) % 16 == 0;
  return rows;
}

}  // namespace xlstm_fused::cuda
