// The recurrent matrix, and the weights of the input, rearranged into the panels that tiles.h reads.
#pragma once

#include <algorithm>

#include "cpu/pack.h"
#include "cpu/tiles.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

// The vector v of units of head n, of each gate of a matrix (K, G, N, D, inputs), to a panel of P parts. Returns whether
// it has numbers too large for tiles.
template <class Storage, int G, int P>
bool pack_tiles(const Problem& p, const void* matrix, int64_t inputs, int64_t k, int64_t n, int64_t v,
                BFloat16* panel) {
  constexpr int W = kLanes<float>;
  constexpr int64_t kNumbers = kTileBytes / 2;
  typename Words<W>::Whole found = {};
  const int units = int(std::min<int64_t>(p.D - v * W, W));
  for (int64_t in = 0; in < inputs; in += 2 * W, panel += P * G * kNumbers) {
    for (int g = 0; g < G; ++g) {
      const Storage* source = static_cast<const Storage*>(matrix) + (((k * G + g) * p.N + n) * p.D + v * W) * inputs;
      VecOf<Storage> x[2][W];
      for (int half = 0; half < 2; ++half) {
        const int64_t first = std::min(in + half * W, inputs);
        load_square(source + first, inputs, units, int(std::min<int64_t>(inputs - first, W)), x[half]);
        for (int i = 0; i < W; ++i) look_for_large(x[half][i], found);
        transpose(x[half], std::make_integer_sequence<int, W>());
      }
      for (int i = 0; i < W; ++i) {
        store_parts<P>(panel + g * kNumbers + i * 2 * W, G * kNumbers, x[0][i], x[1][i]);
      }
    }
  }
  return any_large<W>(found);
}

// Vectors [begin, end) of units of a head, with pack(v, panel) for each.
template <class Pack>
void pack_vectors(const TilePanels& size, int64_t begin, int64_t end, void* panels, Pack pack) {
  char* const bytes = static_cast<char*>(panels);
  for (int64_t v = begin; v < end; ++v) {
    reinterpret_cast<bool*>(bytes + size.flags)[v] = pack(v, reinterpret_cast<BFloat16*>(bytes + v * size.vector));
  }
}

template <class Storage, int G, Form form>
void pack_fwd_tiles(const Problem& p, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels) {
  const TilePanels size = tile_panels(form, p.D, G, vectors(p.D, kLanes<float>));
  pack_vectors(size, begin, end, panels, [&](int64_t v, BFloat16* panel) {
    return pack_tiles<Storage, G, parts_of(form)>(p, p.weight_hh, p.D, k, n, v, panel);
  });
}

template <class Storage, int G>
void pack_input_tiles(const LayerParams& p, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels) {
  const TilePanels size = tile_panels(kSplitTiles, p.input.I, G, vectors(p.D, kLanes<float>));
  pack_vectors(size, begin, end, panels, [&](int64_t v, BFloat16* panel) {
    return pack_tiles<Storage, G, parts_of(kSplitTiles)>(p, p.input.weight_ih, p.input.I, k, n, v, panel);
  });
}

// Vectors [begin, end) of units of head n, in panels of a group each, whose k are G * D_out and whose outputs are the
// inputs of the matrix.
template <class Storage, int G, Form form>
void pack_bwd_tiles(const Problem& p, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels) {
  constexpr int W = kLanes<float>, P = parts_of(form);
  constexpr int64_t kNumbers = kTileBytes / 2;
  const TilePanels size = tile_panels(form, G * p.D, 1, vectors(p.D, W));
  char* const bytes = static_cast<char*>(panels);
  bool* const flags = reinterpret_cast<bool*>(bytes + size.flags);
  // The vector v of inputs, of the numbers of output `out` of all gates.
  const auto some = [&](int64_t out, int64_t v) {
    const bool exists = out < G * p.D;
    const Storage* row = matrix<Storage, G>(p, k, exists ? out / p.D : 0, n) + (exists ? out % p.D : 0) * p.D;
    return load(row + v * W, exists ? int(std::min<int64_t>(p.D - v * W, W)) : 0);
  };
  for (int64_t v = begin; v < end; v += kGroup) {
    const int64_t group = group_size(v, end);
    BFloat16* panel = reinterpret_cast<BFloat16*>(bytes + v * size.vector);
    typename Words<W>::Whole found[kGroup] = {};
    for (int64_t out = 0; out < G * p.D; out += 2 * W, panel += P * group * kNumbers) {
      for (int64_t i = 0; i < W; ++i) {
        for (int64_t j = 0; j < group; ++j) {
          const VecOf<Storage> first = some(out + i, v + j), second = some(out + W + i, v + j);
          look_for_large(first, found[j]);
          look_for_large(second, found[j]);
          store_parts<P>(panel + j * kNumbers + i * 2 * W, group * kNumbers, first, second);
        }
      }
    }
    for (int64_t j = 0; j < group; ++j) flags[v + j] = any_large<W>(found[j]);
  }
}

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
