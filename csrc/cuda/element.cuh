// What a layer's numbers are stored as and how the matrix units multiply them.
#pragma once

#include "numeric.h"

namespace xlstm_fused::cuda {

// Products of float32 are made of three of TF32, or of one where the user allows that.
struct Float32 {
  float value;
};
struct TensorFloat32 {
  float value;
};

// The kinds by the names that launch.h lists.
namespace kinds {
using bfloat16 = BFloat16;
using float16 = Half;
using float32 = Float32;
using tf32 = TensorFloat32;
}  // namespace kinds

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(BFloat16 x) { return widen(x); }
__device__ __forceinline__ float to_float(Half x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}

// To nearest even, by the instructions there are for it.
__device__ __forceinline__ void from_float(float x, float& result) { result = x; }
__device__ __forceinline__ void from_float(float x, BFloat16& result) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
}
__device__ __forceinline__ void from_float(float x, Half& result) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
}

#define XF_MMA(shape, type)                                                                                     \
  asm("mma.sync.aligned." shape ".row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "   \
      "{%0,%1,%2,%3};"                                                                                          \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                          \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// Element<Kind>: Storage, its type in memory; operand, what it becomes where it meets the matrix unit; multiply,
// d += a b for a (16 rows, half a chunk) and b (half a chunk, 8 columns) in the layout of the instruction.
template <class Kind>
struct Element;

template <>
struct Element<BFloat16> {
  using Storage = BFloat16;
  static __device__ __forceinline__ uint32_t operand(uint32_t word) { return word; }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    XF_MMA("m16n8k16", "bf16");
  }
};

template <>
struct Element<Half> {
  using Storage = Half;
  static __device__ __forceinline__ uint32_t operand(uint32_t word) { return word; }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    XF_MMA("m16n8k16", "f16");
  }
};

template <>
struct Element<TensorFloat32> {
  using Storage = float;
  static __device__ __forceinline__ uint32_t operand(uint32_t word) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(bits_float(word)));
    return rounded;
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    XF_MMA("m16n8k8", "tf32");
  }
};

// x as the sum of two numbers of TF32, but for what is below 2^-21 of it.
template <int n>
__device__ __forceinline__ void split_tf32(const uint32_t (&x)[n], uint32_t (&big)[n], uint32_t (&small)[n]) {
  constexpr uint32_t kTf32 = 0xffffe000;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    // Volatile, or what is kept of R in registers would be split once and for all, into twice the registers.
    asm volatile("and.b32 %0, %1, %2;" : "=r"(big[i]) : "r"(x[i]), "n"(kTf32));
    small[i] = float_bits(bits_float(x[i]) - bits_float(big[i])) & kTf32;
  }
}

template <>
struct Element<Float32> {
  using Storage = float;
  static __device__ __forceinline__ uint32_t operand(uint32_t word) { return word; }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&x)[4], const uint32_t (&y)[2]) {
    uint32_t x_big[4], x_small[4], y_big[2], y_small[2];
    split_tf32(x, x_big, x_small);
    split_tf32(y, y_big, y_small);
    Element<TensorFloat32>::multiply(d, x_small, y_big);
    Element<TensorFloat32>::multiply(d, x_big, y_small);
    Element<TensorFloat32>::multiply(d, x_big, y_big);
  }
};

#undef XF_MMA

}  // namespace xlstm_fused::cuda
