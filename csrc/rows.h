// Where the rows of a batch of sequences lie: xlstm_fused/rows.py, for kernels.
#pragma once

#include <stdint.h>

#include "cells/cell.h"

namespace xlstm_fused {

// The placement of B sequences of at most T steps in P rows.
struct Rows {
  int64_t T, B, P;
  int64_t time_stride, batch_stride;
  const int64_t* time_offset;   // (T,), may be nullptr: t * time_stride
  const int64_t* batch_offset;  // (B,), may be nullptr: b * batch_stride
  const int64_t* length;        // (B,), may be nullptr: T for all
};

XF_HD int64_t sequence_length(const Rows& rows, int64_t b) {
  if (!rows.length) return rows.T;
  const int64_t length = rows.length[b];
  return length < 0 ? 0 : length > rows.T ? rows.T : length;
}

// One direction's way through one sequence.
struct Walk {
  Rows rows;
  int64_t b, length;
  bool backwards;
  const uint8_t* reset;  // (P,), may be nullptr

  static XF_HD Walk of(const Rows& rows, const uint8_t* reset, int64_t b, bool backwards) {
    return {rows, b, sequence_length(rows, b), backwards, reset};
  }

  // The row that step `step` consumes, 0 <= step < length.
  XF_HD int64_t row(int64_t step) const {
    const int64_t t = backwards ? length - 1 - step : step;
    const int64_t time = rows.time_offset ? rows.time_offset[t] : t * rows.time_stride;
    return time + (rows.batch_offset ? rows.batch_offset[b] : b * rows.batch_stride);
  }

  // The row whose reset replaces the state before step `step`, or -1. A reset at position t cuts between t and t - 1
  // in either direction, so walking backwards it is the flag of the row consumed before.
  XF_HD int64_t cut(int64_t step) const {
    if (!reset || (backwards && step == 0)) return -1;
    const int64_t source = row(backwards ? step - 1 : step);
    return reset[source] ? source : -1;
  }
};

}  // namespace xlstm_fused
