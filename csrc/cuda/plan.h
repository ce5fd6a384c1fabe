// How one recurrence is spread over programs (CTAs): chosen in xlstm_fused/backends/cuda/plan.py.
#pragma once

#include <stdint.h>

namespace xlstm_fused::cuda {

// How the programs that share a head pass on what each of them computed in a step; the names are those of plan.py.
enum class Exchange { alone, cluster, grid };

// A chunk is 64 bytes along the inner dimension of the product: what four lanes load, 16 bytes each.
constexpr int kChunkBytes = 64;

// Sequences of one tile of the matrix instruction.
constexpr int kTile = 8;

// Most features of an input that the forward kernels multiply by W_ih.
constexpr int kInputs = 32;

struct Plan {
  int32_t programs;       // that share a head, direction and tile of the batch: a group
  int32_t units;          // of each program, a multiple of 8; a warp has 8 of them, those after have none: helpers
  int32_t chunks;         // of the inner dimension: of D forward, of the program's own G * units backward
  int32_t splits;         // backward: warps that share an inner dimension; forward 1
  int32_t shared_chunks;  // chunks of R for each thread in shared memory, after those in registers
  int32_t row_bytes;      // from one sequence to the next in the operand buffer, 64 modulo 128
  int32_t partials;       // backward: offset in shared memory of the partial sums; forward 0
  int32_t fragments;      // offset in shared memory of the chunks of R there
  int64_t watchdog;       // nanoseconds after which a wait gives up and the kernel traps
  int64_t words;          // exchange grid: of each group, in global memory; else 0
};

}  // namespace xlstm_fused::cuda
