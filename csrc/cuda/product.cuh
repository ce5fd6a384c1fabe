// The recurrent product: part of R as fragments of the matrix instruction, in registers as far as they go, then in
// shared memory, then read from memory at every step; and an operand in shared memory that all warps read.
//
// A job is 32 rows of the result, in four bands of 8, for one tile of sequences: lane 4 r + q has in each band row r
// and columns 2 q, 2 q + 1. The inner dimension is taken in the order in which lanes load it: lane q of a chunk has
// 16 bytes in a row of either factor, which the instruction would rather have apart, but the sum is the same.
#pragma once

#include "cuda/element.cuh"
#include "cuda/plan.h"

namespace xlstm_fused::cuda {

__device__ __forceinline__ uint32_t bits_of(float x) { return float_bits(x); }
__device__ __forceinline__ uint32_t bits_of(BFloat16 x) { return x.bits; }
__device__ __forceinline__ uint32_t bits_of(Half x) { return x.bits; }

template <class Storage>
__device__ __forceinline__ Storage of_bits(uint32_t bits) {
  if constexpr (sizeof(Storage) == 4) return bits_float(bits);
  else return Storage{uint16_t(bits)};
}

constexpr int kBands = 4;

// The lane's 16 bytes of a chunk in each band.
struct Fragment {
  uint4 band[kBands];
};

// Four rows of R, one a band, as far as `limit`; the inner dimension of the job begins at `first`.
template <class Kind>
struct MatrixRows {
  using Storage = typename Element<Kind>::Storage;
  static constexpr int kLane = 16 / int(sizeof(Storage));
  const Storage* row[kBands];  // nullptr: zeros
  int first, limit;
  bool aligned;  // whether every 16 bytes of a row can be loaded at once

  __device__ __forceinline__ uint4 load(int band, int chunk, int q) const {
    const int at = first + (chunk * 4 + q) * kLane;
    uint32_t words[4] = {};
    if (row[band] && aligned && at + kLane <= limit) {
      const uint4 whole = __ldg(reinterpret_cast<const uint4*>(row[band] + at));
      words[0] = whole.x, words[1] = whole.y, words[2] = whole.z, words[3] = whole.w;
    } else if (row[band]) {
      constexpr int kWord = 4 / int(sizeof(Storage));
#pragma unroll
      for (int i = 0; i < kLane; ++i) {
        if (at + i < limit) words[i / kWord] |= bits_of(row[band][at + i]) << (i % kWord * 16);
      }
    }
    using E = Element<Kind>;
    return make_uint4(E::operand(words[0]), E::operand(words[1]), E::operand(words[2]), E::operand(words[3]));
  }

  __device__ __forceinline__ Fragment load(int chunk, int q) const {
    Fragment f;
#pragma unroll
    for (int band = 0; band < kBands; ++band) f.band[band] = load(band, chunk, q);
    return f;
  }
};

// Sums of a job: element e of band i and tile j is value[i / 2][j][i % 2 * 2 + e].
template <int kTiles>
struct Sums {
  float value[kBands / 2][kTiles][4];

  __device__ __forceinline__ float at(int band, int tile, int e) const {
    return value[band / 2][tile][band % 2 * 2 + e];
  }
};

// A chunk times the lane's 16 bytes `y` of a tile.
template <class Kind, int kTiles>
__device__ __forceinline__ void multiply_tile(Sums<kTiles>& sums, int tile, const Fragment& f, const uint4& y) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t b[2] = {half ? y.z : y.x, half ? y.w : y.y};
#pragma unroll
    for (int pair = 0; pair < kBands / 2; ++pair) {
      const uint4 &low = f.band[2 * pair], &high = f.band[2 * pair + 1];
      const uint32_t a[4] = {half ? low.z : low.x, half ? high.z : high.x, half ? low.w : low.y,
                             half ? high.w : high.y};
      Element<Kind>::multiply(sums.value[pair][tile], a, b);
    }
  }
}

template <class Kind, int kTiles>
__device__ __forceinline__ void multiply_chunk(Sums<kTiles>& sums, const Fragment& f, const char* operand,
                                               int row_bytes) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    multiply_tile<Kind>(sums, tile, f, *reinterpret_cast<const uint4*>(operand + tile * kTile * row_bytes));
  }
}

// A thread's own slots of shared memory, which no other thread touches: a chunk's fragment each.
class Slots {
 public:
  // They begin at `shared`, for so many threads.
  __device__ __forceinline__ Slots(char* shared, int threads)
      : first_(reinterpret_cast<uint4*>(shared) + threadIdx.x), threads_(threads) {}

  __device__ __forceinline__ void store(int slot, const Fragment& f) const {
#pragma unroll
    for (int band = 0; band < kBands; ++band) part(slot, band) = f.band[band];
  }

  __device__ __forceinline__ Fragment load(int slot) const {
    Fragment f;
#pragma unroll
    for (int band = 0; band < kBands; ++band) f.band[band] = part(slot, band);
    return f;
  }

  // 16 bytes of a slot.
  __device__ __forceinline__ uint4& part(int slot, int band) const { return first_[(slot * kBands + band) * threads_]; }

 private:
  uint4* const first_;
  const int threads_;
};

// The chunks of R that a thread keeps: kRegisters of its first job, then `shared_chunks` in slots.
template <class Kind, int kRegisters>
class Matrix {
 public:
  // Of jobs of `chunks` chunks.
  __device__ __forceinline__ Matrix(const Slots& slots, int shared_chunks, int chunks)
      : slots_(slots), shared_chunks_(shared_chunks), chunks_(chunks) {}

  __device__ __forceinline__ void keep(const MatrixRows<Kind>& rows, int job) {
    const int q = threadIdx.x % 4;
    if (job == 0) {
#pragma unroll
      for (int c = 0; c < kRegisters; ++c) {
        if (c < chunks_) registers_[c] = rows.load(c, q);
      }
    }
    for (int c = job == 0 ? kRegisters : 0; c < chunks_; ++c) {
      const int slot = slot_of(job, c);
      if (slot >= shared_chunks_) break;
      slots_.store(slot, rows.load(c, q));
    }
  }

  // sums += the job's rows of R times the operand, whose chunk 0 for this lane is at `operand`.
  template <bool kFirst, int kTiles>
  __device__ __forceinline__ void multiply(Sums<kTiles>& sums, const MatrixRows<Kind>& rows, int job,
                                           const char* operand, int row_bytes) const {
    if constexpr (kFirst) {
#pragma unroll
      for (int c = 0; c < kRegisters; ++c) {
        if (c < chunks_) multiply_chunk<Kind>(sums, registers_[c], operand + c * kChunkBytes, row_bytes);
      }
    }
#pragma unroll 1
    for (int c = kFirst ? kRegisters : 0; c < chunks_; ++c) {
      const int slot = slot_of(job, c);
      const Fragment f = slot < shared_chunks_ ? slots_.load(slot) : rows.load(c, threadIdx.x % 4);
      multiply_chunk<Kind>(sums, f, operand + c * kChunkBytes, row_bytes);
    }
  }

 private:
  __device__ __forceinline__ int slot_of(int job, int c) const {
    return job * chunks_ + c - (kRegisters < chunks_ ? kRegisters : chunks_);
  }

  Fragment registers_[kRegisters > 0 ? kRegisters : 1];
  const Slots slots_;
  const int shared_chunks_, chunks_;
};

}  // namespace xlstm_fused::cuda
