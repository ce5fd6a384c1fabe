// How the sums of the gradient of h reach the programs that share a head, in the backward pass.
#pragma once

#include "cuda/exchange.cuh"
#include "cuda/place.cuh"

namespace xlstm_fused::cuda {

// Partial sums of dh, in two buffers that take turns: (programs * splits, kTiles, units, 8) floats. A program sends
// those of step t only after all its warps have read those of step t + 1, and needs everyone's for that: so a buffer
// is free when it is written again. In a grid the buffers are words in global memory, with all units of the head.
template <int kTiles, Exchange kExchange>
class PartialExchange {
 public:
  __device__ __forceinline__ PartialExchange(char* shared, const Plan& plan, const Task& task, int columns)
      : plan_(plan), task_(task), columns_(columns), buffers_(shared + plan.partials),
        barriers_(shared_address(shared)) {
    if constexpr (kExchange == Exchange::cluster) {
      if (threadIdx.x == 0) {
        barrier_init(barriers_, blockDim.x / 32);
        barrier_init(barriers_ + 8, blockDim.x / 32);
        fence_barrier_init();
      }
      cluster_barrier();
    }
  }

  // The sums for columns 2 q and 2 q + 1 of `tile` of one unit of the head, from split `split` of this program.
  __device__ __forceinline__ void send(int turn, int split, int tile, int unit, int q, float2 value) const {
    const int source = task_.rank * plan_.splits + split;
    if constexpr (kExchange == Exchange::grid) {
      const uint32_t tag = task_.tag + uint32_t(turn);
      if (tile * kTile + 2 * q < columns_) {
        store_pair(words(tag, source, tile, unit) + 2 * q,
                   {{__float_as_uint(value.x), tag}, {__float_as_uint(value.y), tag}});
      }
    } else {
      const int owner = unit / plan_.units;
      float* const mine = place(turn, source, tile, unit - owner * plan_.units) + 2 * q;
      if constexpr (kExchange == Exchange::cluster) {
        if (owner != task_.rank) {
          const uint32_t barrier = barriers_ + 8 * uint32_t(turn & 1);
          push(peer_address(shared_address(mine), owner), value, peer_address(barrier, owner));
          return;
        }
      }
      *reinterpret_cast<float2*>(mine) = value;
    }
  }

  // By each warp, once per turn, after all it sends.
  __device__ __forceinline__ void arrive(int turn) const {
    if constexpr (kExchange == Exchange::cluster) {
      __syncwarp();
      if (threadIdx.x % 32 != 0) return;
      const uint32_t barrier = barriers_ + 8 * uint32_t(turn & 1);
      const int bytes = (plan_.programs - 1) * plan_.splits * kTiles * plan_.units * kTile * int(sizeof(float));
      if (threadIdx.x == 0) barrier_arrive_expect(barrier, bytes);
      else barrier_arrive(barrier);
    }
  }

  // In a grid only for the program's own warps, which then may overwrite what they multiplied.
  __device__ __forceinline__ void wait(int turn) const {
    if constexpr (kExchange == Exchange::cluster) {
      barrier_wait(barriers_ + 8 * uint32_t(turn & 1), uint32_t(turn >> 1) & 1, plan_.watchdog);
    } else {
      __syncthreads();
    }
  }

  // For a unit of this program; in a grid, the wait for the others as well.
  __device__ __forceinline__ float2 total(int turn, int tile, int unit, int q) const {
    float2 sum = make_float2(0.0f, 0.0f);
    const int sources = plan_.programs * plan_.splits;
    if constexpr (kExchange == Exchange::grid) {
      if (tile * kTile + 2 * q >= columns_) return sum;
      const uint32_t tag = task_.tag + uint32_t(turn);
      const uint64_t* from = words(tag, 0, tile, task_.rank * plan_.units + unit) + 2 * q;
      const int64_t stride = words(tag, 1, tile, 0) - words(tag, 0, tile, 0);
      for (int source = 0; source < sources; source += kPairsAtOnce) {
        WordPair pair[kPairsAtOnce];
#pragma unroll
        for (int i = 0; i < kPairsAtOnce; ++i) {
          if (source + i < sources) pair[i] = load_pair(from + (source + i) * stride);
        }
#pragma unroll
        for (int i = 0; i < kPairsAtOnce; ++i) {
          if (source + i >= sources) continue;
          await(pair[i], from + (source + i) * stride, tag, plan_.watchdog);
          sum.x += __uint_as_float(pair[i].first.data);
          sum.y += __uint_as_float(pair[i].second.data);
        }
      }
    } else {
      for (int source = 0; source < sources; ++source) {
        const float2 part = *reinterpret_cast<const float2*>(place(turn, source, tile, unit) + 2 * q);
        sum.x += part.x;
        sum.y += part.y;
      }
    }
    return sum;
  }

 private:
  __device__ __forceinline__ float* place(int turn, int source, int tile, int unit) const {
    // Alone, one is enough: a second barrier of the program lies between its last reader and its next writer.
    const int buffer = kExchange == Exchange::alone ? 0 : (turn & 1) * plan_.programs * plan_.splits;
    return reinterpret_cast<float*>(buffers_) + (((buffer + source) * kTiles + tile) * plan_.units + unit) * kTile;
  }

  __device__ __forceinline__ uint64_t* words(uint32_t tag, int source, int tile, int unit) const {
    const int buffer = int(tag & 1) * plan_.programs * plan_.splits;
    return task_.words + (int64_t((buffer + source) * kTiles + tile) * plan_.programs * plan_.units + unit) * kTile;
  }

  // Pairs that a thread loads before it looks at the first of them.
  static constexpr int kPairsAtOnce = 12;

  const Plan& plan_;
  const Task& task_;
  const int columns_;
  char* const buffers_;
  const uint32_t barriers_;
};

}  // namespace xlstm_fused::cuda
