// What the bindings of every backend can tell from numbers before a kernel gets them. Whether arrays are as large as
// the sizes say, only the caller knows.
#pragma once

#include <stdint.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "params.h"

namespace xlstm_fused {

// Numbers of gates and states of a cell.
struct CellSizes {
  int64_t gates, states;
};

inline void require_at_least(int64_t least, const char* name, int64_t value) {
  if (value >= least) return;
  throw std::invalid_argument(std::string(name) + ": expected at least " + std::to_string(least) + ", got " +
                              std::to_string(value));
}

inline void require_below(int64_t limit, const char* name, int64_t value) {
  if (value < limit) return;
  throw std::invalid_argument(std::string(name) + ": expected less than " + std::to_string(limit) + ", got " +
                              std::to_string(value));
}

inline void require_address(const char* name, const void* address) {
  if (!address) throw std::invalid_argument(std::string(name) + ": expected an address, got 0");
}

// The product of the sizes of an array and of its elements is at most what a process can address: no arithmetic with
// addresses overflows then.
inline void require_addressable(const char* name, std::initializer_list<int64_t> sizes) {
  constexpr int64_t kMost = int64_t(1) << 47;
  int64_t bytes = 1;
  for (const int64_t size : sizes) {
    if (__builtin_mul_overflow(bytes, size, &bytes) || bytes > kMost) {
      throw std::invalid_argument(std::string(name) + ": expected sizes of an array that memory can hold");
    }
  }
}

// The rows of a layout that strides alone describe: all different, and the last one among the P there are.
inline void check_dense(const Rows& rows) {
  if (rows.time_offset || rows.batch_offset || rows.T == 0 || rows.B == 0) return;
  if (rows.T > 1) require_at_least(1, "time_stride", rows.time_stride);
  if (rows.B > 1) require_at_least(1, "batch_stride", rows.batch_stride);
  int64_t time, batch, last;
  if (__builtin_mul_overflow(rows.T - 1, rows.time_stride, &time) ||
      __builtin_mul_overflow(rows.B - 1, rows.batch_stride, &batch) || __builtin_add_overflow(time, batch, &last) ||
      last >= rows.P) {
    throw std::invalid_argument("time_stride, batch_stride: expected rows below P = " + std::to_string(rows.P));
  }
}

inline void check(const Problem& p, CellSizes cell) {
  const Rows& rows = p.rows;
  require_at_least(0, "T", rows.T);
  require_at_least(0, "B", rows.B);
  require_at_least(0, "P", rows.P);
  require_at_least(0, "time_stride", rows.time_stride);
  require_at_least(0, "batch_stride", rows.batch_stride);
  require_at_least(1, "K", p.K);
  require_below(3, "K", p.K);
  require_at_least(1, "N", p.N);
  require_at_least(1, "D", p.D);
  constexpr int64_t kElement = sizeof(double);
  require_addressable("T", {rows.T, kElement});
  require_addressable("weight_hh", {p.K, cell.gates, p.N, p.D, p.D, kElement});
  require_addressable("rows", {cell.gates, p.K, p.N, p.D, kElement, rows.P});
  require_addressable("states", {cell.states, p.K, p.N, p.D, kElement, rows.B});
  check_dense(rows);
  require_address("weight_hh", p.weight_hh);
}

inline void check(const Input& input, const Problem& p, CellSizes cell) {
  require_at_least(0, "I", input.I);
  if (input.I == 0) return;
  constexpr int64_t kElement = sizeof(double);
  require_addressable("x", {input.I, kElement, p.rows.P});
  require_addressable("weight_ih", {p.K, cell.gates, p.N, p.D, input.I, kElement});
  require_address("weight_ih", input.weight_ih);
  if (p.rows.P > 0) require_address("x", input.x);
}

inline void check(const ForwardParams& p, CellSizes cell, const Input& input = {}) {
  check(static_cast<const Problem&>(p), cell);
  check(input, p, cell);
  if (p.rows.P > 0) {
    if (input.I == 0) require_address("wx", p.wx);
    require_address("output", p.output);
    // Both, or neither: inference. A cell with one state has no others to save.
    if (p.states) require_address("pre", p.pre);
    if (p.pre && cell.states > 1) require_address("states", p.states);
  }
  if (p.rows.B > 0) {
    require_address("h_n", p.h_n);
    if (cell.states > 1) require_address("s_n", p.s_n);
  }
}

inline void check(const BackwardParams& p, CellSizes cell) {
  check(static_cast<const Problem&>(p), cell);
  if (p.rows.P > 0) {
    require_address("pre", p.pre);
    require_address("output", p.output);
    require_address("dpre", p.dpre);
    if (cell.states > 1) require_address("states", p.states);
  }
  if (p.rows.B > 0) {
    require_address("dh0", p.dh0);
    if (cell.states > 1) require_address("ds0", p.ds0);
  }
}

}  // namespace xlstm_fused
