// The product of an input and its weights by AMX, for as many rows as a thread takes at a time.
#pragma once

#include <algorithm>

#include "cpu/strips.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

// The weights of the input of the vector v of units of head n, to a panel: a strip of columns for each gate, then the
// bias. Returns whether there are numbers too large for tiles.
template <class Storage, int G>
bool pack_tiled_input_vector(const LayerParams& p, int64_t k, int64_t n, int64_t v, const InputPanels& size,
                             char* panel) {
  constexpr int W = kLanes<float>;
  const Input& input = p.input;
  const int64_t I = input.I;
  const int units = int(std::min<int64_t>(p.D - v * W, W));
  typename Words<W>::Whole found = {};
  for (int g = 0; g < G; ++g) {
    const int64_t unit = ((k * G + g) * p.N + n) * p.D + v * W;
    const Storage* const rows = static_cast<const Storage*>(input.weight_ih) + unit * I;
    pack_strip<true, false>(rows, I, 0, units, 0, I, tiles(I) * kTileDepth,
                            reinterpret_cast<BFloat16*>(panel + g * size.strip), found);
  }
  float* const bias = reinterpret_cast<float*>(panel + size.bias);
  if (input.bias) load_bias<Storage, G>(p, k, n, v, bias);
  else std::fill_n(bias, G * W, 0.0f);
  return any_large<W>(found);
}

// Those of vectors [begin, end), and their flags.
template <class Storage, int G>
void pack_tiled_input(const LayerParams& p, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels) {
  constexpr int W = kLanes<float>;
  const InputPanels size = input_panels(p.input, G, vectors(p.D, W), W, sizeof(float), kPartsOf<Storage>);
  char* const bytes = static_cast<char*>(panels);
  for (int64_t v = begin; v < end; ++v) {
    reinterpret_cast<bool*>(bytes + size.flags)[v] =
        pack_tiled_input_vector<Storage, G>(p, k, n, v, size, bytes + v * size.vector);
  }
}

// c[rows][G][W] = the split rows times the panel of one vector of units, plus its bias; c has room for whole blocks.
template <int G, int P>
void multiply_input_tiles(const char* panel, const InputPanels& size, const SplitRows& x, int64_t rows, float* c) {
  constexpr int W = kLanes<float>;
  const int64_t columns = x.columns();
  for (int64_t i = 0; i < rows; i += kBlock) {
    const Strips some{x.numbers() + i * x.stride(), kStrip * x.stride(), kTileDepth, x.stride()};
    for (int pair = 0; pair < G; pair += 2) {
      // Of an odd number of gates the last but one is multiplied twice.
      const int g = std::min(pair, G - 2);
      const float* const bias = static_cast<const float*>(static_cast<const void*>(panel + size.bias)) + g * W;
      const auto* const strips = reinterpret_cast<const BFloat16*>(panel + g * size.strip);
      multiply_block<P>(some, packed_strips<P>(strips, columns), columns, c + (i * G + g) * W, G * W, [&](auto sums) {
        load_tile<sums>(bias + sums % 2 * W, 0);  // the same line for every row
      });
    }
  }
}

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
