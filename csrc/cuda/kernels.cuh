// The kernels and what there is an instance of.
#pragma once

#include "cuda/backward.cuh"
#include "cuda/forward.cuh"

namespace xlstm_fused::cuda {

extern __shared__ __align__(128) char shared_memory[];

// A program alone has up to 16 warps of 128 registers each, so less of R is in registers; one among others has up to 8,
// of 255. plan.py knows both numbers.
template <Exchange kExchange>
constexpr int kThreads = kExchange == Exchange::alone ? 512 : 256;

// Chunks of R in a thread's registers: as many as leave the rest of the kernel its own.
constexpr XF_HD int registers(Exchange exchange, int tiles, bool backward) {
  if (exchange == Exchange::alone) return backward ? 0 : 1;
  if (exchange == Exchange::grid) return backward ? 3 : 7;
  return backward ? (tiles == 1 ? 5 : 3) : (tiles == 1 ? 8 : 6);
}

// Calls work(task), which returns the number of its steps, for each task of this program. Alone and in a cluster that
// is one. In a grid there are as many groups of programs as have room, and each takes a share of the heads, directions
// and tiles of the batch in turn. Tags go on from task to task; the words are zero before the launch, and tags begin
// at 1.
template <int kTiles, Exchange kExchange, class Work>
__device__ __forceinline__ void for_each_task(const Problem& p, const Plan& plan, uint64_t* words, Work work) {
  if constexpr (kExchange == Exchange::grid) {
    const int groups = gridDim.x / plan.programs, group = blockIdx.x / plan.programs;
    const int tiles = int((p.rows.B + kTiles * kTile - 1) / (kTiles * kTile));
    const int64_t tasks = p.K * p.N * tiles;
    uint32_t tag = 1;
#pragma unroll 1
    for (int64_t i = group; i < tasks; i += groups) {
      const int head = int(i / tiles);
      const Task task = {int(blockIdx.x % plan.programs), int(head % p.N), int(head / p.N), int(i % tiles),
                         words + group * plan.words, tag};
      tag += uint32_t(work(task));
    }
  } else {
    const int rank = kExchange == Exchange::cluster ? cluster_rank() : 0;
    work(Task{rank, int(blockIdx.y), int(blockIdx.z), int(blockIdx.x / plan.programs), nullptr, 0});
  }
}

template <class Cell, class Kind, int kTiles, Exchange kExchange>
__global__ void __launch_bounds__(kThreads<kExchange>, 1)
    recurrence_fwd_kernel(const __grid_constant__ ForwardParams p, const __grid_constant__ Plan plan, uint64_t* words,
                          const __grid_constant__ Input input) {
  constexpr int kRegisters = registers(kExchange, kTiles, false);
  for_each_task<kTiles, kExchange>(p, plan, words, [&](const Task& task) {
    return recurrence_fwd<Cell, Kind, kTiles, kExchange, kRegisters>(p, input, plan, shared_memory, task);
  });
}

template <class Cell, class Kind, int kTiles, Exchange kExchange>
__global__ void __launch_bounds__(kThreads<kExchange>, 1)
    recurrence_bwd_kernel(const __grid_constant__ BackwardParams p, const __grid_constant__ Plan plan,
                          uint64_t* words, const void* weight_t) {
  constexpr int kRegisters = registers(kExchange, kTiles, true);
  for_each_task<kTiles, kExchange>(p, plan, words, [&](const Task& task) {
    return recurrence_bwd<Cell, Kind, kTiles, kExchange, kRegisters>(p, plan, weight_t, shared_memory, task);
  });
}

}  // namespace xlstm_fused::cuda
