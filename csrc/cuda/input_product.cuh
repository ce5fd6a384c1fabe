// The input product of a forward pass that is given x in place of wx: wx[t + 1] = W_ih x[t + 1] + b is formed while
// h[t] is on its way, and never in memory.
#pragma once

#include "cuda/place.cuh"

namespace xlstm_fused::cuda {

// What a thread has of the next step: wx, as bits of the layer's numbers, or of float32 where it is formed here; before
// that, x. It may be on its way from memory until it is read.
template <int kTiles>
struct Ahead {
  uint32_t number[kTiles][2 * kBands];

  // Of item i and gate g.
  __device__ __forceinline__ uint32_t& wx(int i, int g) { return number[i / 2][i % 2 * kBands + g]; }
};

// A warp multiplies its rows of W_ih, from its threads' slots, by x of the tile, which every warp loads by itself: so
// none has to wait for others. A lane loads what the instruction wants of it in each tile: 8 features of sequence
// `group`.
template <class Kind, int G, int kTiles>
class InputProduct {
 public:
  using Storage = typename Element<Kind>::Storage;

  // W_ih is in `slots` from `first_slot` on.
  __device__ __forceinline__ InputProduct(const Input& input, const Slots& slots, int first_slot)
      : input_(input), slots_(slots), first_slot_(first_slot) {}

  __device__ __forceinline__ void keep(const Place<Kind, kTiles>& place) {
    static_assert(G == kBands, "the biases of a unit fill a band");
    const MatrixRows<Kind> rows = gate_rows<Kind, G, kTiles>(place, input_.weight_ih, input_.I);
    float bias[G];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c < chunks()) slots_.store(first_slot_ + c, rows.load(c, place.q));
    }
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const int64_t at = ((place.k * G + g) * place.p.N + place.n) * place.p.D + place.unit;
      bias[g] = place.has_unit() ? load_or_zero<Storage>(input_.bias, at) : 0.0f;
    }
    slots_.part(first_slot_ + chunks(), 0) =
        make_uint4(bits_of(bias[0]), bits_of(bias[1]), bits_of(bias[2]), bits_of(bias[3]));
  }

  // Begins to bring x of these rows, of the thread's sequences, into the second-level cache: from `load` to `form` is
  // less time than memory may take.
  __device__ __forceinline__ void prefetch(const Place<Kind, kTiles>& place, const int32_t (&row)[2 * kTiles]) const {
    if (place.local_unit > 0) return;
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const auto* begin = static_cast<const Storage*>(input_.x) + int64_t(row[i]) * input_.I;
      asm volatile("prefetch.global.L2 [%0];" ::"l"(begin));
    }
  }

  // Begins to load x from the rows of the thread's sequences, -1 where there is none.
  __device__ __forceinline__ void load(const Place<Kind, kTiles>& place, const int32_t (&row)[2 * kTiles],
                                       Ahead<kTiles>& ahead) const {
    const auto* x = static_cast<const Storage*>(input_.x);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      // The first unit's lanes know the rows of all sequences, if the warp has any unit.
      const int32_t even = __shfl_sync(~0u, row[2 * tile], place.group / 2);
      const int32_t odd = __shfl_sync(~0u, row[2 * tile + 1], place.group / 2);
      const int32_t from = place.group % 2 ? odd : even;
      const Storage* const begin = x + int64_t(from) * input_.I;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int at = (c * 4 + place.q) * kLane;
        uint32_t* const words = ahead.number[tile] + c * kLane;
#pragma unroll
        for (int i = 0; i < kLane; ++i) words[i] = 0;
        if (from < 0) continue;
        if (aligned()) {
          if (at >= input_.I) continue;
          const uint4 whole = __ldg(reinterpret_cast<const uint4*>(begin + at));
          words[0] = whole.x, words[1] = whole.y, words[2] = whole.z, words[3] = whole.w;
        } else {
#pragma unroll
          for (int i = 0; i < kLane; ++i) {
            if (at + i < input_.I) words[i] = bits_of(begin[at + i]);
          }
        }
      }
    }
  }

  // Turns x into wx.
  __device__ __forceinline__ void form(Ahead<kTiles>& ahead) const {
    // The instruction is one of all lanes, and each has stored what it has, or not.
    __syncwarp();
    Sums<kTiles> sums = {};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= chunks()) continue;
      const Fragment f = slots_.load(first_slot_ + c);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint32_t* const words = ahead.number[tile] + c * kLane;
        multiply_tile<Kind>(sums, tile, f, make_uint4(word(words, 0), word(words, 1), word(words, 2), word(words, 3)));
      }
    }
    const uint4 whole = slots_.part(first_slot_ + chunks(), 0);
    const uint32_t bias[] = {whole.x, whole.y, whole.z, whole.w};
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
#pragma unroll
      for (int g = 0; g < G; ++g) ahead.wx(i, g) = bits_of(bits_float(bias[g]) + sums.at(g, i / 2, i % 2));
    }
  }

 private:
  static constexpr int kLane = MatrixRows<Kind>::kLane;
  static constexpr int kChunks = kInputs * int(sizeof(Storage)) / kChunkBytes;

  __device__ __forceinline__ int chunks() const { return int((input_.I + 4 * kLane - 1) / (4 * kLane)); }

  // Whether every 16 bytes of a row of x can be loaded at once.
  __device__ __forceinline__ bool aligned() const {
    return input_.I % kLane == 0 && reinterpret_cast<uintptr_t>(input_.x) % 16 == 0;
  }

  // Word i of a chunk as the product takes it. Numbers loaded one by one are joined here, not where that would wait for
  // them.
  __device__ __forceinline__ uint32_t word(const uint32_t* words, int i) const {
    if constexpr (kLane == 4) return Element<Kind>::operand(words[i]);
    else return aligned() ? words[i] : words[2 * i] | words[2 * i + 1] << 16;
  }

  const Input& input_;
  const Slots& slots_;
  const int first_slot_;
};

}  // namespace xlstm_fused::cuda
