// The kernels of one ISA. Compiled once for each, with the ISA's flags and XLSTM_FUSED_ISA naming it; the table at the
// end is all that leaves this file.
#include "cpu/kernels.h"

#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/pack.h"
#include "cpu/pack_tiles.h"
#include "cpu/vector_math.h"
#if defined(XLSTM_FUSED_AMX_BF16)
#include "cpu/tile_product.h"
#endif

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

#if defined(XLSTM_FUSED_AMX_BF16)
constexpr Feature kNeeds = kAmx;
#elif defined(__AVX512BF16__)
constexpr Feature kNeeds = kAvx512Bf16;
#elif defined(__AVX512F__)
constexpr Feature kNeeds = kAvx512;
#elif defined(__AVX2__)
constexpr Feature kNeeds = kAvx2;
#else
constexpr Feature kNeeds = kAny;
#endif

constexpr size_t larger(size_t a, size_t b) { return a > b ? a : b; }

// Sets the packers of each form that a kernel of such a layer has a use for.
template <class Storage, int G>
constexpr void set_packers(Packers (&packers)[kForms]) {
  packers[kWhole] = {pack_fwd<Storage, G, Compute<Storage>>, pack_bwd<Storage, G, Compute<Storage>>};
  if constexpr (can_be_bfloat16<Storage>) {
    packers[kHalves] = {pack_fwd<Storage, G, BFloat16>, pack_bwd<Storage, G, BFloat16>};
  }
  if constexpr (has_pairs<Storage>) packers[kPairs] = {pack_fwd<Storage, G, Pair>, nullptr};
  if constexpr (has_tiles<Storage>) packers[kTiles] = {pack_fwd_tiles<Storage, G>, pack_bwd_tiles<Storage, G>};
}

template <class Cell, class Storage>
constexpr Kernel kernel() {
  // An ISA whose only news are products of bfloat16, or of tiles, has kernels for these alone.
  if constexpr ((kNeeds == kAvx512Bf16 && !has_pairs<Storage>) || (kNeeds == kAmx && !has_tiles<Storage>)) {
    return {};
  } else {
    using E = Compute<Storage>;
    constexpr size_t cursor =
        larger(sizeof(typename Forward<Cell, Storage, true>::Cursor), sizeof(typename Backward<Cell, Storage>::Cursor));
    Kernel result{kLanes<E>, sizeof(E), Cell::G, Cell::S, cursor, is_bfloat16<Storage>, {}, nullptr,
                  nullptr, 0, recurrence_fwd<Cell, Storage>, recurrence_bwd<Cell, Storage>};
    set_packers<Storage, Cell::G>(result.pack);
    if constexpr (takes_any_input<Storage>) result.pack_input = pack_input<Storage, Cell::G>;
    if constexpr (takes_input<Storage> && has_tiles<Storage>) {
      result.pack_input_tiles = pack_tiled_input<Storage, Cell::G>;
      result.input_parts = kPartsOf<Storage>;
    }
    return result;
  }
}

#if defined(XLSTM_FUSED_AMX_BF16)
constexpr MultiplyMatrices kMultiplyMatrices = multiply_matrices;
#else
constexpr MultiplyMatrices kMultiplyMatrices = nullptr;
#endif

}  // namespace

#define XLSTM_FUSED_ROW(name, Cell) \
  {kernel<Cell, float>(), kernel<Cell, double>(), kernel<Cell, BFloat16>(), kernel<Cell, Half>()},
extern const KernelTable kernels;
constexpr KernelTable kernels = {kNeeds, {XLSTM_FUSED_CELLS(XLSTM_FUSED_ROW)}, kMultiplyMatrices};
#undef XLSTM_FUSED_ROW

}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
