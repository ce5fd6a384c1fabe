// Loads and stores of vectors from and to the storage types, whole or the first n lanes.
#pragma once

#include <type_traits>

#include "cpu/simd.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

// The type that a layer of storage type Storage computes in, and keeps its states but h in.
template <class Storage>
struct ComputeOf {
  using Type = float;
};
template <>
struct ComputeOf<double> {
  using Type = double;
};
template <class Storage>
using Compute = typename ComputeOf<Storage>::Type;

// Whether panels of such a layer's matrix may hold bfloat16.
template <class Storage>
inline constexpr bool can_be_bfloat16 = std::is_same_v<Storage, float> || std::is_same_v<Storage, BFloat16>;

// Whether products of h and the matrix may be of bfloat16 by the ISA's own instruction.
#if defined(__AVX512BF16__)
template <class Storage>
inline constexpr bool has_pairs = std::is_same_v<Storage, BFloat16>;
#else
template <class Storage>
inline constexpr bool has_pairs = false;
#endif

// Whether a matrix of numbers of bfloat16 may be in tiles.
#if defined(XLSTM_FUSED_AMX_BF16)
template <class Storage>
inline constexpr bool has_tiles = can_be_bfloat16<Storage>;
#else
template <class Storage>
inline constexpr bool has_tiles = false;
#endif

// Whether such a layer's forward pass takes an input: torch's own products of the other types are as fast. One of
// bfloat16 only for tiles, as a float32 may be.
template <class Storage>
inline constexpr bool takes_input = std::is_same_v<Storage, float> || has_tiles<Storage>;
template <class Storage>
inline constexpr bool takes_any_input = std::is_same_v<Storage, float>;

// What such a product takes at a time: the numbers of k and k + 1.
struct Pair {
  BFloat16 numbers[2];
};

XF_HD int64_t pairs(int64_t D) { return (D + 1) / 2; }

template <class Storage>
using VecOf = Vec<Compute<Storage>, kLanes<Compute<Storage>>>;

template <class E>
XF_HD VecOf<E> load(const E* p) {
  return VecOf<E>::load(p);
}

template <class E>
XF_HD void store(E* p, VecOf<E> x) {
  x.store(p);
}

template <int W>
struct Words {
  typedef uint16_t Half __attribute__((vector_size(2 * W)));
  typedef uint32_t Whole __attribute__((vector_size(4 * W)));
};

XF_HD VecOf<BFloat16> load(const BFloat16* p) {
  constexpr int W = kLanes<float>;
  typename Words<W>::Half half;
  __builtin_memcpy(&half, p, sizeof half);
  const auto whole = __builtin_convertvector(half, typename Words<W>::Whole) << 16;
  VecOf<BFloat16> x;
  x.raw = (VecOf<BFloat16>::Raw)whole;
  return x;
}

XF_HD void store(BFloat16* p, VecOf<BFloat16> x) {
  constexpr int W = kLanes<float>;
  const auto bits = (typename Words<W>::Whole)x.raw;
  // Rounding would carry a NaN of low payload into infinity.
  const auto rounded = x.raw != x.raw ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const auto half = __builtin_convertvector(rounded, typename Words<W>::Half);
  __builtin_memcpy(p, &half, sizeof half);
}

XF_HD VecOf<Half> load(const Half* p) {
  VecOf<Half> x;
#if defined(__F16C__) && XLSTM_FUSED_VECTOR_BYTES == 32
  x.raw = (VecOf<Half>::Raw)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX512F__) && XLSTM_FUSED_VECTOR_BYTES == 64
  // Of all lanes, here and below: GCC 12 warns of its own unmasked form.
  x.raw = (VecOf<Half>::Raw)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__aarch64__) && XLSTM_FUSED_VECTOR_BYTES == 16
  x.raw = (VecOf<Half>::Raw)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
#else
  for (int lane = 0; lane < kLanes<float>; ++lane) x.raw[lane] = widen(p[lane]);
#endif
  return x;
}

XF_HD void store(Half* p, VecOf<Half> x) {
#if defined(__F16C__) && XLSTM_FUSED_VECTOR_BYTES == 32
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)x.raw, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX512F__) && XLSTM_FUSED_VECTOR_BYTES == 64
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)x.raw, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__) && XLSTM_FUSED_VECTOR_BYTES == 16
  vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x.raw)));
#else
  for (int lane = 0; lane < kLanes<float>; ++lane) narrow(x.raw[lane], p[lane]);
#endif
}

// The numbers of two vectors, all bfloat16, as pairs.
template <int W>
XF_HD Vec<float, W> side_by_side(Vec<float, W> first, Vec<float, W> second) {
  return Vec<float, W>(((first.bits() >> 16) & 0xffff) | (second.bits() & ~0xffff));
}

template <int W>
XF_HD void store_pairs(void* p, Vec<float, W> first, Vec<float, W> second) {
  const Vec<float, W> both = side_by_side(first, second);
  __builtin_memcpy(p, &both.raw, sizeof both.raw);
}

// The first n lanes, the rest zero; p may end there.
template <class Storage>
XF_HD VecOf<Storage> load(const Storage* p, int n) {
  constexpr int W = kLanes<Compute<Storage>>;
  if (__builtin_expect(n == W, 1)) return load(p);
  Storage lanes[W] = {};
  for (int lane = 0; lane < W; ++lane) {
    if (lane < n) lanes[lane] = p[lane];
  }
  return load(lanes);
}

template <class Storage>
XF_HD void store(Storage* p, VecOf<Storage> x, int n) {
  constexpr int W = kLanes<Compute<Storage>>;
  if (__builtin_expect(n == W, 1)) return store(p, x);
  Storage lanes[W];
  store(lanes, x);
  for (int lane = 0; lane < W; ++lane) {
    if (lane < n) p[lane] = lanes[lane];
  }
}

#if defined(__AVX512F__) && XLSTM_FUSED_VECTOR_BYTES == 64
XF_HD VecOf<float> load(const float* p, int n) {
  return VecOf<float>((VecOf<float>::Raw)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p));
}
#endif

// nullptr stands for zeros.
template <class Storage>
XF_HD VecOf<Storage> load_or_zero(const Storage* p, int n) {
  return p ? load(p, n) : VecOf<Storage>(0);
}

// What a value becomes when it is stored and loaded again.
template <class Storage>
XF_HD VecOf<Storage> rounded(VecOf<Storage> x) {
  if constexpr (sizeof(Storage) == sizeof(Compute<Storage>)) return x;
  Storage lanes[kLanes<float>];
  store(lanes, x);
  return load(lanes);
}

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA
