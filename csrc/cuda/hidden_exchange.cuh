// How h reaches all programs that share a head, in the forward pass.
#pragma once

#include "cuda/exchange.cuh"
#include "cuda/place.cuh"

namespace xlstm_fused::cuda {

// h for the next step, of all units of the head and all sequences of the tile, in two buffers of shared memory that
// take turns. A warp writes what it has into its own program's. No second wait protects a buffer from being
// overwritten: whoever has received all of h[t] knows that all have read h[t - 1], since they needed it to compute
// their part.
//
// In a cluster it also pushes that into the others' buffers; one wait on the program's own barrier covers both. In a
// grid it stores that as words in two buffers of global memory, laid out as the rows in shared memory are, and a
// program fetches there what it has not computed itself.
template <class Kind, int kTiles, Exchange kExchange>
class HiddenExchange {
 public:
  using Storage = typename Element<Kind>::Storage;
  static constexpr int kSlice = 8 * int(sizeof(Storage));  // bytes of a warp's units in a row

  __device__ __forceinline__ HiddenExchange(char* shared, const Plan& plan, const Task& task, int columns)
      : plan_(plan), task_(task), columns_(columns), buffers_(shared + kChunkBytes),
        barriers_(shared_address(shared)) {
    // Padding of the inner dimension stays zero for good.
    const int words = 2 * kTiles * kTile * plan.row_bytes / 4;
    for (int i = threadIdx.x; i < words; i += blockDim.x) reinterpret_cast<uint32_t*>(buffers_)[i] = 0;
    if constexpr (kExchange == Exchange::cluster) {
      if (threadIdx.x == 0) {
        barrier_init(barriers_, blockDim.x / 32);
        barrier_init(barriers_ + 8, blockDim.x / 32);
        fence_barrier_init();
      }
      cluster_barrier();
    } else {
      __syncthreads();
    }
  }

  __device__ __forceinline__ char* row(int64_t step, int column) const {
    return buffers_ + (int(step & 1) * kTiles * kTile + column) * plan_.row_bytes;
  }

  __device__ __forceinline__ void write(int64_t step, int column, int64_t unit, float h) const {
    Storage stored;
    from_float(h, stored);
    if constexpr (sizeof(Storage) == 4) stored = bits_float(Element<Kind>::operand(float_bits(stored)));
    *reinterpret_cast<Storage*>(row(step, column) + unit * sizeof(Storage)) = stored;
  }

  // After all lanes of the warp have written: h is complete at `step` once all warps of all programs have sent it.
  __device__ __forceinline__ void send(int64_t step) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int at = task_.rank * plan_.units * int(sizeof(Storage)) + warp * kSlice;
    if constexpr (kExchange == Exchange::cluster) {
      __syncwarp();
      const int warps = blockDim.x / 32;
      const uint32_t barrier = barriers_ + 8 * uint32_t(step & 1);
#pragma unroll
      for (int part = 0; part < kTiles * kSlice / 16; ++part) {
        char* mine = row(step, part / (kSlice / 16) * kTile + lane % 8) + at + part % (kSlice / 16) * 16;
        const uint4 value = *reinterpret_cast<const uint4*>(mine);
        for (int peer = lane / 8; peer < plan_.programs; peer += 4) {
          if (peer != task_.rank) push(peer_address(shared_address(mine), peer), value, peer_address(barrier, peer));
        }
      }
      if (lane == 0) {
        const int bytes = (plan_.programs - 1) * warps * kTiles * kTile * kSlice;
        if (warp == 0) barrier_arrive_expect(barrier, bytes);
        else barrier_arrive(barrier);
      }
    }
    if constexpr (kExchange == Exchange::grid) {
      __syncwarp();
      const uint32_t tag = task_.tag + uint32_t(step);
      constexpr int kWords = kSlice / 4;
#pragma unroll
      for (int part = 0; part < kTiles * kTile * kWords / 32; ++part) {
        const int index = part * 32 + lane, column = index / kWords, byte = at + index % kWords * 4;
        const uint32_t value = *reinterpret_cast<const uint32_t*>(row(step, column) + byte);
        if (column < columns_) store_word(words(tag, column) + byte / 4, {value, tag});
      }
    }
  }

  __device__ __forceinline__ void wait(int64_t step) const {
    if constexpr (kExchange == Exchange::cluster) {
      barrier_wait(barriers_ + 8 * uint32_t(step & 1), uint32_t(step >> 1) & 1, plan_.watchdog);
    } else {
      if constexpr (kExchange == Exchange::grid) fetch(step);
      __syncthreads();
    }
  }

 private:
  __device__ __forceinline__ int row_words() const { return plan_.programs * plan_.units * int(sizeof(Storage)) / 4; }

  __device__ __forceinline__ uint64_t* words(uint32_t tag, int column) const {
    return task_.words + (int(tag & 1) * kTiles * kTile + column) * row_words();
  }

  // What the others sent, into this program's own buffer: two words, 8 bytes of a row, at a time.
  __device__ __forceinline__ void fetch(int64_t step) const {
    const uint32_t tag = task_.tag + uint32_t(step);
    const int own = plan_.units * int(sizeof(Storage)) / 8, others = (plan_.programs - 1) * own;
    const int count = columns_ * others;
    for (int first = threadIdx.x; first < count; first += kPairsAtOnce * blockDim.x) {
      WordPair pair[kPairsAtOnce];
      const uint64_t* from[kPairsAtOnce];
      char* to[kPairsAtOnce];
#pragma unroll
      for (int i = 0; i < kPairsAtOnce; ++i) {
        const int index = first + i * blockDim.x;
        if (index >= count) continue;
        const int column = index / others;
        int at = index - column * others;
        if (at >= task_.rank * own) at += own;
        from[i] = words(tag, column) + 2 * at;
        to[i] = row(step, column) + 8 * at;
        pair[i] = load_pair(from[i]);
      }
#pragma unroll
      for (int i = 0; i < kPairsAtOnce; ++i) {
        if (first + i * blockDim.x >= count) continue;
        await(pair[i], from[i], tag, plan_.watchdog);
        *reinterpret_cast<uint2*>(to[i]) = make_uint2(pair[i].first.data, pair[i].second.data);
      }
    }
  }

  // Pairs that a thread loads before it looks at the first of them; plan.py knows the number.
  static constexpr int kPairsAtOnce = 4;

  const Plan& plan_;
  const Task& task_;
  const int columns_;
  char* const buffers_;
  const uint32_t barriers_;
};

}  // namespace xlstm_fused::cuda
