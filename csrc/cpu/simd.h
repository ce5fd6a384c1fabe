// Vectors of numbers for one instruction set, on the vector extensions of GCC and Clang.
//
// A translation unit that includes this is compiled once per ISA, with XLSTM_FUSED_ISA naming the namespace. All that
// it defines is internal to it, or has its body forced inline: the linker merges weak symbols of one name, and would
// otherwise give the code of one ISA to all.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "cells/cell.h"
#include "numeric.h"

// The width can be forced beyond the ISA's own: the compiler splits the operations, so that the code of a wide ISA can
// be tested on a processor without it.
#if !defined(XLSTM_FUSED_VECTOR_BYTES)
#if defined(__AVX512F__)
#define XLSTM_FUSED_VECTOR_BYTES 64
#elif defined(__AVX__)
#define XLSTM_FUSED_VECTOR_BYTES 32
#else
#define XLSTM_FUSED_VECTOR_BYTES 16
#endif
#endif

// Tiles have lines of 64 bytes. Before version 15, clang writes the name in another way.
#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && XLSTM_FUSED_VECTOR_BYTES == 64
#define XLSTM_FUSED_AMX_BF16
#endif

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

// Lanes of a vector of E.
template <class E>
inline constexpr int kLanes = XLSTM_FUSED_VECTOR_BYTES / int(sizeof(E));

template <class E>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using Type = int32_t;
};
template <>
struct IntegerOf<double> {
  using Type = int64_t;
};

template <class E, int W>
struct RawOf {
  typedef E Type __attribute__((vector_size(W * sizeof(E))));
};

template <class E, int W>
struct Mask {
  typename RawOf<typename IntegerOf<E>::Type, W>::Type raw;
};

template <class E, int W>
struct Vec {
  using Raw = typename RawOf<E, W>::Type;
  using Bits = typename RawOf<typename IntegerOf<E>::Type, W>::Type;
  Raw raw;

  Vec() = default;
  explicit XF_HD Vec(E x) : raw(x - Raw{}) {}  // x - 0 is x, -0 included: a broadcast
  explicit XF_HD Vec(Raw x) : raw(x) {}
  explicit XF_HD Vec(Bits x) : raw((Raw)x) {}
  XF_HD Bits bits() const { return (Bits)raw; }

  // At p, of any alignment.
  static XF_HD Vec load(const E* p) {
    Vec x;
    __builtin_memcpy(&x.raw, p, sizeof(Raw));
    return x;
  }
  XF_HD void store(E* p) const { __builtin_memcpy(p, &raw, sizeof(Raw)); }
};

#define XF_VEC template <class E, int W> XF_HD
XF_VEC Vec<E, W> operator+(Vec<E, W> a, Vec<E, W> b) { return Vec<E, W>(a.raw + b.raw); }
XF_VEC Vec<E, W> operator-(Vec<E, W> a, Vec<E, W> b) { return Vec<E, W>(a.raw - b.raw); }
XF_VEC Vec<E, W> operator*(Vec<E, W> a, Vec<E, W> b) { return Vec<E, W>(a.raw * b.raw); }
XF_VEC Vec<E, W> operator/(Vec<E, W> a, Vec<E, W> b) { return Vec<E, W>(a.raw / b.raw); }
XF_VEC Vec<E, W> operator-(Vec<E, W> a) { return Vec<E, W>(-a.raw); }
XF_VEC Mask<E, W> operator<(Vec<E, W> a, Vec<E, W> b) { return {a.raw < b.raw}; }
XF_VEC Mask<E, W> operator>(Vec<E, W> a, Vec<E, W> b) { return {a.raw > b.raw}; }
XF_VEC Mask<E, W> operator==(Vec<E, W> a, Vec<E, W> b) { return {a.raw == b.raw}; }
XF_VEC Mask<E, W> operator!=(Vec<E, W> a, Vec<E, W> b) { return {a.raw != b.raw}; }
XF_VEC Mask<E, W> operator|(Mask<E, W> a, Mask<E, W> b) { return {a.raw | b.raw}; }
XF_VEC Vec<E, W> select(Mask<E, W> condition, Vec<E, W> chosen, Vec<E, W> other) {
  return Vec<E, W>(condition.raw ? chosen.raw : other.raw);
}

// a * b + c, with one rounding where the ISA has it. Nothing else in the kernels is fused (-ffp-contract=off), so
// that what a row computes does not depend on how the compiler arranged the code around it.
XF_VEC Vec<E, W> fma(Vec<E, W> a, Vec<E, W> b, Vec<E, W> c) {
  Vec<E, W> r;
  using Raw [[maybe_unused]] = typename Vec<E, W>::Raw;
  [[maybe_unused]] constexpr bool is_float = sizeof(E) == sizeof(float);
#if defined(__FMA__)
#if defined(__AVX512F__)
  if constexpr (sizeof(r) == 64) {
    if constexpr (is_float) r.raw = (Raw)_mm512_fmadd_ps((__m512)a.raw, (__m512)b.raw, (__m512)c.raw);
    else r.raw = (Raw)_mm512_fmadd_pd((__m512d)a.raw, (__m512d)b.raw, (__m512d)c.raw);
    return r;
  }
#endif
  if constexpr (sizeof(r) == 32) {
    if constexpr (is_float) r.raw = (Raw)_mm256_fmadd_ps((__m256)a.raw, (__m256)b.raw, (__m256)c.raw);
    else r.raw = (Raw)_mm256_fmadd_pd((__m256d)a.raw, (__m256d)b.raw, (__m256d)c.raw);
    return r;
  }
#endif
#if defined(__aarch64__)
  if constexpr (sizeof(r) == 16) {
    if constexpr (is_float) r.raw = (Raw)vfmaq_f32((float32x4_t)c.raw, (float32x4_t)a.raw, (float32x4_t)b.raw);
    else r.raw = (Raw)vfmaq_f64((float64x2_t)c.raw, (float64x2_t)a.raw, (float64x2_t)b.raw);
    return r;
  }
#endif
#if defined(__FP_FAST_FMAF) && defined(__FP_FAST_FMA)
  for (int lane = 0; lane < W; ++lane) {
    if constexpr (sizeof(E) == sizeof(float)) r.raw[lane] = __builtin_fmaf(a.raw[lane], b.raw[lane], c.raw[lane]);
    else r.raw[lane] = __builtin_fma(a.raw[lane], b.raw[lane], c.raw[lane]);
  }
#else
  r.raw = a.raw * b.raw + c.raw;
#endif
  return r;
}
#undef XF_VEC

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
