// The recurrent matrix rearranged into the panels that tiles.h reads. All its numbers are bfloat16.
#pragma once

#include <algorithm>

#include "cpu/pack.h"
#include "cpu/tiles.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

// The vector v of units of head n, of each gate, to a panel. Returns whether it has numbers too large for tiles.
template <class Storage, int G>
bool pack_tiles(const Problem& p, int64_t k, int64_t n, int64_t v, BFloat16* panel) {
  constexpr int W = kLanes<float>;
  const int64_t D = p.D;
  const int units = int(std::min<int64_t>(D - v * W, W));
  typename Words<W>::Whole found = {};
  for (int64_t in = 0; in < D; in += 2 * W) {
    for (int g = 0; g < G; ++g) {
      VecOf<Storage> x[2][W];
      for (int half = 0; half < 2; ++half) {
        const int64_t first = std::min(in + half * W, D);
        load_square(matrix<Storage, G>(p, k, g, n) + v * W * D + first, D, units, int(std::min<int64_t>(D - first, W)),
                    x[half]);
        for (int i = 0; i < W; ++i) look_for_large(x[half][i], found);
        transpose(x[half], std::make_integer_sequence<int, W>());
      }
      for (int i = 0; i < W; ++i, panel += 2 * W) store_pairs(panel, x[0][i], x[1][i]);
    }
  }
  return any_large<W>(found);
}

// Vectors [begin, end) of units of head n, each a panel whose outputs are one vector of each gate.
template <class Storage, int G>
void pack_fwd_tiles(const Problem& p, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels) {
  const TilePanels size = tile_panels(p.D, G, vectors(p.D, kLanes<float>));
  char* const bytes = static_cast<char*>(panels);
  for (int64_t v = begin; v < end; ++v) {
    reinterpret_cast<bool*>(bytes + size.flags)[v] =
        pack_tiles<Storage, G>(p, k, n, v, reinterpret_cast<BFloat16*>(bytes + v * size.vector));
  }
}

// The group of vectors from v, to a panel whose k are G * D_out and whose outputs are the inputs of the matrix.
template <class Storage, int G>
void pack_group_tiles(const Problem& p, int64_t k, int64_t n, int64_t v, int64_t group, BFloat16* panel, bool* large) {
  constexpr int W = kLanes<float>;
  constexpr int64_t kNumbers = kTileBytes / 2;
  const int64_t D = p.D;
  typename Words<W>::Whole found[kGroup] = {};
  const Storage* next = matrix<Storage, G>(p, k, 0, n) + v * W;
  int64_t left = D;  // outputs of the gate
  for (int64_t out = 0; out < G * D; out += 2 * W, panel += group * kNumbers) {
    const Storage* rows[2 * W];
    for (int i = 0; i < 2 * W; ++i) {
      rows[i] = out + i < G * D ? next : nullptr;
      next += D;
      if (--left > 0) continue;
      next += (p.N - 1) * D * D;
      left = D;
    }
    for (int64_t j = 0; j < group; ++j) {
      const int units = int(std::min<int64_t>(D - (v + j) * W, W));
      for (int i = 0; i < W; ++i) {
        VecOf<Storage> x[2];
        for (int half = 0; half < 2; ++half) {
          const Storage* row = rows[half * W + i];
          x[half] = row ? load(row + j * W, units) : VecOf<Storage>(0);
          look_for_large(x[half], found[j]);
        }
        store_pairs(panel + j * kNumbers + i * 2 * W, x[0], x[1]);
      }
    }
  }
  for (int64_t j = 0; j < group; ++j) large[j] = any_large<W>(found[j]);
}

// Vectors [begin, end) of units of head n, in groups.
template <class Storage, int G>
void pack_bwd_tiles(const Problem& p, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels) {
  const TilePanels size = tile_panels(G * p.D, 1, vectors(p.D, kLanes<float>));
  char* const bytes = static_cast<char*>(panels);
  for (int64_t v = begin; v < end; v += kGroup) {
    pack_group_tiles<Storage, G>(p, k, n, v, group_size(v, end), reinterpret_cast<BFloat16*>(bytes + v * size.vector),
                                 reinterpret_cast<bool*>(bytes + size.flags) + v);
  }
}

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
