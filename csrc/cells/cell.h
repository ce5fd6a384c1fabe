// What the cells are written in: the same names for one number (here) and for a vector of numbers (cpu/vector_math.h).
//
// A cell is a struct with
//   G, S        the numbers of gates and of states, h included and first
//   kReadsH     whether its step uses h other than through the recurrent product
//   forward     (pre[G], s[S]) -> next[S]
//   backward    (pre[G], s[S], next[S], dnext[S]) -> dpre[G], ds[S], the exact derivative of forward; ds[0] leaves out
//               the path through the recurrent product
// s[0] and next[0] are not read, and ds[0] is zero, where kReadsH is false. A cell never touches memory.
#pragma once

#include <math.h>

#if defined(__CUDACC__)
#define XF_HD __host__ __device__ __forceinline__
#else
// Forced: a copy left for the linker to merge could carry the instructions of one ISA into the code of another.
#define XF_HD inline __attribute__((always_inline))
#endif

namespace xlstm_fused {

template <class V>
XF_HD V select(bool condition, V chosen, V other) {
  return condition ? chosen : other;
}

XF_HD float exp(float x) { return ::expf(x); }
XF_HD double exp(double x) { return ::exp(x); }
XF_HD float tanh(float x) { return ::tanhf(x); }
XF_HD double tanh(double x) { return ::tanh(x); }

// exp of a negative number only: no overflow, and the small results keep their digits.
XF_HD float sigmoid(float x) {
  const float e = ::expf(-::fabsf(x));
  return (x < 0 ? e : 1) / (1 + e);
}
XF_HD double sigmoid(double x) {
  const double e = ::exp(-::fabs(x));
  return (x < 0 ? e : 1) / (1 + e);
}

XF_HD float log_sigmoid(float x) { return (x > 0 ? 0 : x) - ::log1pf(::expf(-::fabsf(x))); }
XF_HD double log_sigmoid(double x) { return (x > 0 ? 0 : x) - ::log1p(::exp(-::fabs(x))); }

// NaN if either is.
template <class V>
XF_HD V maximum(V a, V b) {
  return select((a > b) | (a != a), a, b);
}

}  // namespace xlstm_fused
