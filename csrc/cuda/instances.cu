// The kernels of one pass, kind of number and exchange, for all cells. Compiled once for each, which XLSTM_FUSED_PASS,
// XLSTM_FUSED_KIND and XLSTM_FUSED_EXCHANGE name, so that they compile side by side.
#include "cells/cells.h"
#include "cuda/kernels.cuh"
#include "cuda/launch.h"

namespace xlstm_fused::cuda {
namespace {

#define XLSTM_FUSED_JOIN_(a, b, c, d, e) a##b##c##d##e
#define XLSTM_FUSED_JOIN(a, b, c, d, e) XLSTM_FUSED_JOIN_(a, b, c, d, e)
#define XLSTM_FUSED_KERNEL XLSTM_FUSED_JOIN(recurrence_, XLSTM_FUSED_PASS, _kernel, , )
#define XLSTM_FUSED_FUNCTION XLSTM_FUSED_JOIN(XLSTM_FUSED_PASS, _, XLSTM_FUSED_KIND, _, XLSTM_FUSED_EXCHANGE)

template <class Cell>
const void* instance(int tiles) {
  using Kind = kinds::XLSTM_FUSED_KIND;
  constexpr Exchange kExchange = Exchange::XLSTM_FUSED_EXCHANGE;
  if (tiles == 1) return reinterpret_cast<const void*>(&XLSTM_FUSED_KERNEL<Cell, Kind, 1, kExchange>);
  if constexpr (kExchange == Exchange::cluster) {
    if (tiles == 2) return reinterpret_cast<const void*>(&XLSTM_FUSED_KERNEL<Cell, Kind, 2, kExchange>);
  }
  return nullptr;
}

}  // namespace

const void* XLSTM_FUSED_FUNCTION(int cell, int tiles) {
  int index = 0;
#define XLSTM_FUSED_FIND(name, Cell) \
  if (cell == index++) return instance<Cell>(tiles);
  XLSTM_FUSED_CELLS(XLSTM_FUSED_FIND)
#undef XLSTM_FUSED_FIND
  return nullptr;
}

}  // namespace xlstm_fused::cuda
