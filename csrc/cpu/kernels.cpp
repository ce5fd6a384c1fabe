// The kernels of one ISA. Compiled once for each, with the ISA's flags and XLSTM_FUSED_ISA naming it; the table at the
// end is all that leaves this file.
#include "cpu/kernels.h"

#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/pack.h"
#include "cpu/vector_math.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

#if defined(__AVX512F__)
constexpr Feature kNeeds = kAvx512;
#elif defined(__AVX2__)
constexpr Feature kNeeds = kAvx2;
#else
constexpr Feature kNeeds = kAny;
#endif

constexpr size_t larger(size_t a, size_t b) { return a > b ? a : b; }

template <class Storage, int G, class N>
constexpr Packers packers() {
  return {pack_fwd<Storage, G, N>, pack_bwd<Storage, G, N>};
}

template <class Cell, class Storage>
constexpr Kernel kernel() {
  using E = Compute<Storage>;
  constexpr size_t cursor =
      larger(sizeof(typename Forward<Cell, Storage, true>::Cursor), sizeof(typename Backward<Cell, Storage>::Cursor));
  return {kLanes<E>, sizeof(E), Cell::G, Cell::S, cursor, is_bfloat16<Storage>, packers<Storage, Cell::G, E>(),
          packers<Storage, Cell::G, std::conditional_t<can_be_bfloat16<Storage>, BFloat16, E>>(),
          recurrence_fwd<Cell, Storage>, recurrence_bwd<Cell, Storage>};
}

}  // namespace

#define XLSTM_FUSED_ROW(name, Cell) \
  {kernel<Cell, float>(), kernel<Cell, double>(), kernel<Cell, BFloat16>(), kernel<Cell, Half>()},
extern const KernelTable kernels;
constexpr KernelTable kernels = {kNeeds, {XLSTM_FUSED_CELLS(XLSTM_FUSED_ROW)}};
#undef XLSTM_FUSED_ROW

}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
