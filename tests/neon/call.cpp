// One call of the CPU kernels, read from standard input and answered on standard output: for test_neon.py, which runs
// this on an emulated processor. A request is the names and numbers below, then the arrays that are not nullptr.
#include <stdio.h>

#include <vector>

#include "cpu/dispatch.h"
#include "cpu/recurrence.h"

using namespace xlstm_fused;
using namespace xlstm_fused::cpu;

namespace {

// The first kProblem values are those of struct Problem, with its Rows, the others those of the pass, in their order: of
// the forward pass, those of struct Input last.
constexpr int kProblem = 20, kFields = 33;

struct Request {
  char cell[16], dtype[16];
  int64_t backward, threads, team, tiles;
  int64_t number[kFields];  // of a field that is one
  int64_t bytes[kFields];   // of an array, -1 for nullptr and for a number
};

}  // namespace

int main() {
  Request request;
  if (fread(&request, sizeof request, 1, stdin) != 1) return 1;
  std::vector<std::vector<char>> arrays(kFields);
  std::vector<char*> at(kFields);
  for (int field = 0; field < kFields; ++field) {
    if (request.bytes[field] < 0) continue;
    arrays[field].resize(request.bytes[field] + 1);  // an empty array has an address too
    at[field] = arrays[field].data();
    if (fread(at[field], 1, request.bytes[field], stdin) != size_t(request.bytes[field])) return 1;
  }
  const int64_t* n = request.number;
  const auto integers = [&](int field) { return reinterpret_cast<const int64_t*>(at[field]); };
  const Rows rows{n[0], n[1], n[2], n[3], n[4], integers(5), integers(6), integers(7)};
  const Problem problem{rows, n[8], n[9], n[10], n[11] != 0, n[12] != 0, at[13], at[14], at[15],
                        reinterpret_cast<const uint8_t*>(at[16]), at[17], at[18], at[19]};
  const Kernel& kernel = find_kernel("", request.cell, request.dtype);
  const Plan plan{request.threads, request.team, request.tiles};
  char* const* a = at.data() + kProblem;
  if (request.backward) {
    recurrence_bwd({problem, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12]}, kernel,
                   plan, nullptr, nullptr);
  } else {
    recurrence_fwd({{problem, a[0], a[1], a[2], a[3], a[4], a[5]}, {n[kProblem + 6], a[7], a[8], a[9]}}, kernel,
                   plan, nullptr, nullptr);
  }
  for (int field = 0; field < kFields; ++field) {
    if (request.bytes[field] > 0) fwrite(at[field], 1, request.bytes[field], stdout);
  }
}
