// The kernels of one pass and one kind of number, for all cells. Compiled once for each pass and kind, which
// XLSTM_FUSED_PASS and XLSTM_FUSED_KIND name, so that they compile side by side.
#include "cells/cells.h"
#include "cuda/kernels.cuh"
#include "cuda/launch.h"

namespace xlstm_fused::cuda {
namespace {

#define XLSTM_FUSED_JOIN_(a, b) a##b
#define XLSTM_FUSED_JOIN(a, b) XLSTM_FUSED_JOIN_(a, b)
#define XLSTM_FUSED_KERNEL XLSTM_FUSED_JOIN(XLSTM_FUSED_JOIN(recurrence_, XLSTM_FUSED_PASS), _kernel)

template <class Cell>
const void* instance(int tiles, Exchange exchange) {
  using Kind = kinds::XLSTM_FUSED_KIND;
  if (exchange == Exchange::kCluster) {
    if (tiles == 1) return reinterpret_cast<const void*>(&XLSTM_FUSED_KERNEL<Cell, Kind, 1, Exchange::kCluster>);
    if (tiles == 2) return reinterpret_cast<const void*>(&XLSTM_FUSED_KERNEL<Cell, Kind, 2, Exchange::kCluster>);
  } else if (tiles == 1) {
    return reinterpret_cast<const void*>(&XLSTM_FUSED_KERNEL<Cell, Kind, 1, Exchange::kAlone>);
  }
  return nullptr;
}

}  // namespace

const void* XLSTM_FUSED_JOIN(XLSTM_FUSED_JOIN(XLSTM_FUSED_PASS, _), XLSTM_FUSED_KIND)(int cell, int tiles,
                                                                                      Exchange exchange) {
  int index = 0;
#define XLSTM_FUSED_FIND(name, Cell) \
  if (cell == index++) return instance<Cell>(tiles, exchange);
  XLSTM_FUSED_CELLS(XLSTM_FUSED_FIND)
#undef XLSTM_FUSED_FIND
  return nullptr;
}

}  // namespace xlstm_fused::cuda
