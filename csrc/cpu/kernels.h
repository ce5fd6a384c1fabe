// What the driver calls: one table of functions per ISA, filled by kernels.cpp, which is compiled once for each.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cells/cells.h"
#include "cpu/barrier.h"
#include "cpu/matrix_product.h"
#include "cpu/stopwatch.h"
#include "params.h"

namespace xlstm_fused::cpu {

// How panels hold the matrix: in the compute type; in bfloat16, two vectors interleaved; in bfloat16, numbers of two
// consecutive k side by side, which meet two of h in one instruction; in bfloat16, in tiles (tiles.h).
enum Form { kWhole, kHalves, kPairs, kTiles, kForms };

// The forward pass of a layer: of wx, or of an input where there is one.
struct LayerParams : ForwardParams {
  Input input;
};

// One thread's part of one job: the whole walk of some sequences through one head of one direction.
struct Job {
  int64_t k, n;              // direction, head
  const int64_t* sequences;  // (count,) their indices, by descending length
  int64_t count;
  int64_t begin, end;  // this thread's units, counted in vectors
  Stop* stop;          // of the call
  bool asks;           // whether this is the thread that made it
  Barrier* barrier;    // of the threads that share the job; nullptr where there is one
  void* panels;              // the head's matrix as packed; if once, room of this thread for a group of its vectors
  bool once;                 // whether it is used once, so that the kernel packs what it multiplies by next
  Form form;                 // of the panels
  void* input_panels;        // the head's weights of the input likewise, if there is one; if once, room for a vector
  bool input_once;
  int input_parts;           // of their numbers in tiles (input_tiles.h); 0: they are in none
  void* shared;        // (shared_elements,) of the threads that share the job
  void* own;           // (own_bytes,) of this thread
  void* split_rows;    // (split_rows_bytes,) of this thread, if the form is kTiles
  void* input;         // (InputBuffers,) of this thread, if there is an input
  Seconds* seconds;    // of this thread; nullptr: nobody measures

  // Called once per step, by all threads of the job at the same place: whether it goes on.
  XF_HD bool goes_on() const {
    if (asks ? stop->step() : stop->requested()) return false;
    return !barrier || barrier->wait(*stop);
  }
};

// Elements from one row to the next in the buffers that products read: an odd number of cache lines, so that rows do
// not compete for the same cache sets.
XF_HD int64_t row_stride(int64_t columns, int64_t element_size) {
  const int64_t line = 64 / element_size;
  return ((columns + line - 1) / line | 1) * line;
}

XF_HD int64_t vectors(int64_t D, int64_t lanes) { return (D + lanes - 1) / lanes; }

// A tile is 32 k by a vector of outputs.
constexpr int64_t kTileDepth = 32, kTileBytes = 1024;

XF_HD int64_t tiles(int64_t columns) { return (columns + kTileDepth - 1) / kTileDepth; }

// Bytes of the panels in tiles of one head, with `outputs` vectors of outputs for each vector of units: those of the
// vectors, then for each vector whether its numbers are too large for tiles.
struct TilePanels {
  int64_t vector, flags, all;
};

XF_HD TilePanels tile_panels(int64_t columns, int64_t outputs, int64_t vectors) {
  const int64_t vector = tiles(columns) * outputs * kTileBytes;
  return {vector, vectors * vector, vectors * vector + vectors};
}

// The numbers of bfloat16 whose sum is a float32.
constexpr int kParts = 3;

// Numbers of bfloat16 from one row to the next where rows of `columns` are in up to kParts parts.
XF_HD int64_t split_stride(int64_t columns) { return row_stride(kParts * kTileDepth * tiles(columns), 2); }

// Those rows, then for each whether its numbers are too large for tiles.
XF_HD int64_t split_rows_bytes(int64_t rows, int64_t columns) { return rows * (split_stride(columns) * 2 + 1); }

// Vectors of units are taken this many at a time in the backward product; the last group of a thread may be smaller.
constexpr int kGroup = 4;

// What a pass of one kind needs, in elements of the compute type: `exchange` twice, then `planes` arrays of the states.
struct Buffers {
  int64_t stride;    // of exchange (rows, stride)
  int64_t exchange;  // elements
  int64_t plane;     // elements of (rows, units rounded up to vectors)
};

XF_HD Buffers buffers(int64_t rows, int64_t columns, int64_t D, int64_t lanes, int64_t element_size) {
  const int64_t stride = row_stride(columns, element_size);
  return {stride, rows * stride, rows * vectors(D, lanes) * lanes};
}

// The most rows that are multiplied by a matrix which is used once without a panel of it.
constexpr int64_t kUnpackedRows = 4;

// The fewest rows of an input to multiply by their weights at a time, several steps of them where a step has fewer: so
// many that reading the weights is not what takes the time, and few enough for the products to stay in cache. By tiles,
// which are faster and may read six bytes for a number, twice as many.
constexpr int64_t kInputRows = 128;

// Rows of float32 that are multiplied together by tiles.
constexpr int64_t kBlockRows = 32;

// What a thread with `vectors` vectors of units multiplies at a time, in elements of the compute type: x, then the
// products (vectors, rows, gates, lanes). By tiles, x is SplitRows, and there is room for whole blocks.
struct InputBuffers {
  int64_t steps, rows;
  int64_t stride;       // of x (rows, stride), if it is not for tiles
  int64_t x, products;  // elements

  XF_HD int64_t elements() const { return x + products; }
};

// Columns of x as it is multiplied: the features and, where there is a bias, a 1 for it. Tiles start with the bias.
XF_HD int64_t input_columns(const Input& input, int parts) { return input.I + (input.bias && !parts ? 1 : 0); }

XF_HD InputBuffers input_buffers(const Input& input, int64_t rows, int64_t vectors, int64_t gates, int64_t lanes,
                                 int64_t element_size, int parts) {
  const int64_t steps = ((parts ? 2 : 1) * kInputRows + rows - 1) / rows, columns = input_columns(input, parts);
  const int64_t all = parts ? (steps * rows + kBlockRows - 1) / kBlockRows * kBlockRows : steps * rows;
  const int64_t line = 64 / element_size, stride = row_stride(columns, element_size);
  const int64_t x = parts ? (split_rows_bytes(all, columns) + 63) / 64 * line : all * stride;
  return {steps, all, stride, x, vectors * all * gates * lanes};
}

// Bytes of the panels of the weights of the input of one head. In tiles, a vector of units has a strip (strips.h) of
// each gate, then the bias; after all vectors comes for each whether its numbers are too large for tiles.
struct InputPanels {
  int64_t strip, bias, vector, flags, all;
};

XF_HD InputPanels input_panels(const Input& input, int64_t gates, int64_t vectors, int64_t lanes, int64_t element_size,
                               int parts) {
  const int64_t columns = input_columns(input, parts), line = gates * lanes * element_size;
  if (!parts) return {0, 0, columns * line, 0, vectors * columns * line};
  const int64_t strip = tiles(columns) * parts * kTileBytes, vector = gates * strip + line;
  return {strip, gates * strip, vector, vectors * vector, vectors * vector + vectors};
}

// Those that write panels of one form; nullptr where a kernel has no use for it.
struct Packers {
  void (*fwd)(const Problem&, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels);
  void (*bwd)(const Problem&, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels);
};

// pack_input writes panels of the weights of the input, and pack_input_tiles writes them for tiles, in `input_parts`
// parts; either is nullptr where a kernel takes no input so.
struct Kernel {
  int64_t lanes, element_size, gates, states;
  size_t cursor_bytes;  // per row, the larger of forward's and backward's
  bool (*is_bfloat16)(const Problem&, int64_t gates);  // whether the matrix is the same in bfloat16
  Packers pack[kForms];
  void (*pack_input)(const LayerParams&, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels);
  void (*pack_input_tiles)(const LayerParams&, int64_t k, int64_t n, int64_t begin, int64_t end, void* panels);
  int input_parts;
  void (*forward)(const LayerParams&, const Job&);
  void (*backward)(const BackwardParams&, const Job&);
};

enum Feature { kAny, kAvx2, kAvx512, kAvx512Bf16, kAmx };
enum Dtype { kFloat32, kFloat64, kBFloat16, kFloat16, kDtypes };

#define XLSTM_FUSED_COUNT(name, Cell) +1
constexpr int kCells = 0 XLSTM_FUSED_CELLS(XLSTM_FUSED_COUNT);
#undef XLSTM_FUSED_COUNT

struct KernelTable {
  Feature needs;
  Kernel kernels[kCells][kDtypes];  // without functions where those of the next ISA are as good
  MultiplyMatrices multiply_matrices;  // nullptr where torch's are as good
};

namespace portable {
extern const KernelTable kernels;
}
namespace avx2 {
extern const KernelTable kernels;
}
namespace avx512 {
extern const KernelTable kernels;
}
namespace avx512bf16 {
extern const KernelTable kernels;
}
namespace avx512amx {
extern const KernelTable kernels;
}

}  // namespace xlstm_fused::cpu
