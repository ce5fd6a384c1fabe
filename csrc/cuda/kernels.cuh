// The kernels and what there is an instance of.
#pragma once

#include "cuda/backward.cuh"
#include "cuda/forward.cuh"

namespace xlstm_fused::cuda {

extern __shared__ __align__(128) char shared_memory[];

// A program alone has up to 16 warps of 128 registers each, so less of R is in registers; one in a cluster has up to 8,
// of 255. plan.py knows both numbers.
template <Exchange kExchange>
constexpr int kThreads = kExchange == Exchange::alone ? 512 : 256;

// Chunks of R in a thread's registers: as many as leave the rest of the kernel its own.
constexpr XF_HD int registers(Exchange exchange, int tiles, bool backward) {
  if (exchange == Exchange::alone) return backward ? 0 : 1;
  return backward ? (tiles == 1 ? 5 : 3) : (tiles == 1 ? 8 : 6);
}

template <Exchange kExchange>
__device__ __forceinline__ int rank_in_head() {
  if constexpr (kExchange == Exchange::cluster) return cluster_rank();
  return 0;
}

template <class Cell, class Kind, int kTiles, Exchange kExchange>
__global__ void __launch_bounds__(kThreads<kExchange>, 1)
    recurrence_fwd_kernel(const __grid_constant__ ForwardParams p, const __grid_constant__ Plan plan) {
  constexpr int kRegisters = registers(kExchange, kTiles, false);
  recurrence_fwd<Cell, Kind, kTiles, kExchange, kRegisters>(p, plan, shared_memory, rank_in_head<kExchange>());
}

template <class Cell, class Kind, int kTiles, Exchange kExchange>
__global__ void __launch_bounds__(kThreads<kExchange>, 1)
    recurrence_bwd_kernel(const __grid_constant__ BackwardParams p, const __grid_constant__ Plan plan,
                          const void* weight_t) {
  constexpr int kRegisters = registers(kExchange, kTiles, true);
  recurrence_bwd<Cell, Kind, kTiles, kExchange, kRegisters>(p, plan, weight_t, shared_memory,
                                                            rank_in_head<kExchange>());
}

}  // namespace xlstm_fused::cuda
