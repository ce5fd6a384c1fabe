// The arguments of the kernels, for every kind of hardware. Letters and layouts: all arrays are contiguous, "storage"
// is the dtype of the layer, "state" is float (double where the storage is double). Any initial state, reset state or
// incoming gradient that is nullptr is zero. Arrays of S - 1 states are nullptr where S is 1.
#pragma once

#include <stdint.h>

#include "rows.h"

namespace xlstm_fused {

// What the two directions of the pass share.
struct Problem {
  Rows rows;
  int64_t K, N, D;            // directions, heads, head dim
  bool reverse;               // direction k walks backwards iff (k == 1) != reverse
  bool reset_per_row;         // whether reset_h and reset_s have a state for each row, or for each sequence
  const void* weight_hh;      // (K, G, N, D_out, D_in) storage
  const void* h0;             // (K, B, N, D) storage, may be nullptr
  const void* s0;             // (S - 1, K, B, N, D) state, may be nullptr
  const uint8_t* reset;       // (P,), may be nullptr
  const void* reset_h;        // (K, B, N, D) or (P, K, N, D) storage, may be nullptr
  const void* reset_s;        // (S - 1, K, B, N, D) or (S - 1, P, K, N, D) state, may be nullptr
  const void* h_mask;         // (K, B, N, D) storage, may be nullptr: factor of h where it meets weight_hh
};

struct ForwardParams : Problem {
  const void* wx;  // (P, K, G, N, D) storage; may be nullptr where there is an Input
  void* output;    // (P, K, N, D) storage
  void* h_n;       // (K, B, N, D) storage
  void* s_n;       // (S - 1, K, B, N, D) state
  void* pre;       // (P, K, G, N, D) storage, may be nullptr together with states: inference
  void* states;    // (S - 1, P, K, N, D) state, may be nullptr
};

// What wx is made of, x W_ih^T + bias, for a kernel that forms it itself and is given no wx.
struct Input {
  int64_t I;              // features; 0 where wx is given, and nothing else is read then
  const void* x;          // (P, I) storage
  const void* weight_ih;  // (K, G, N, D, I) storage
  const void* bias;       // (K, G, N, D) storage, may be nullptr
};

struct BackwardParams : Problem {
  const void* pre;       // (P, K, G, N, D) storage
  const void* states;    // (S - 1, P, K, N, D) state
  const void* output;    // (P, K, N, D) storage
  const void* d_output;  // (P, K, N, D) storage, may be nullptr
  const void* d_h_n;     // (K, B, N, D) storage, may be nullptr
  const void* d_s_n;     // (S - 1, K, B, N, D) state, may be nullptr
  const void* d_pre;     // (P, K, G, N, D) storage, may be nullptr
  const void* d_states;  // (S - 1, P, K, N, D) state, may be nullptr
  void* dpre;            // (P, K, G, N, D) storage
  void* dh0;             // (K, B, N, D) storage
  void* ds0;             // (S - 1, K, B, N, D) state
  void* dreset_h;        // as reset_h, may be nullptr; per row: only rows with a reset are written
  void* dreset_s;        // as reset_s, may be nullptr; per row: only rows with a reset are written
};

}  // namespace xlstm_fused
