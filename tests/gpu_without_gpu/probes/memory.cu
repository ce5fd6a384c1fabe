// Kernels for test_ptx_interpreter.py: memory, matrices and copies that any GPU since sm_80 has.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

struct Arguments {
  const float* x;
  float* y;
  int count;
  uint8_t flag;
  int64_t shift;
  const float* absent;
};

__constant__ float table[5] = {1, 2, 3, 4, 5};
__device__ unsigned counter = 7;
extern __shared__ float4 dynamic_shared[];

__device__ __noinline__ float scaled(float value, int index) { return value * table[index % 5] + float(index); }

extern "C" __global__ void by_value(const Arguments p) {
  float stack[200];
  for (int k = 0; k < 200; ++k) stack[k] = p.x[k & 31];
  stack[p.count + 32] += 1;
  float* shared = reinterpret_cast<float*>(dynamic_shared);
  int i = threadIdx.x;
  float v = scaled(p.x[i], i);
  switch (p.count) {
    case 0: v += 1; break;
    case 1: v *= 3; break;
    case 2: v = v * v; break;
    case 3: v -= float(p.shift); break;
    case 4: v = p.flag ? -v : v; break;
    case 5: v = p.absent ? 0 : v / 2; break;
  }
  shared[i] = v;
  __syncthreads();
  float4 four = dynamic_shared[i / 4 ^ 1];
  p.y[i] = four.x + four.y + four.z + four.w + stack[(i + p.count) % 200];
  atomicAdd(&counter, 1u);
  atomicMax(reinterpret_cast<unsigned*>(p.y + blockDim.x), counter);
}

extern "C" __global__ void atomics(unsigned* at, unsigned long long* wide, float* real) {
  int i = threadIdx.x;
  atomicAdd(at, i);
  atomicInc(at + 1, 6);
  atomicOr(at + 2, 1u << (i & 31));
  atomicCAS(at + 3, 5, 100 + i);
  atomicExch(at + 4, 9);
  atomicMin(at + 5, 50 - (i & 15));
  atomicAdd(wide, 1ull << 33);
  atomicAdd(real, 0.5f);
}

// D (16, 8) = A (16, K) B (K, 8) for one warp; B is stored as (8, K).
template <typename T, int K>
__device__ void product(const T* a, const T* b, float* d, const char* = nullptr) {
  __shared__ alignas(16) T sa[16 * K], sb[8 * K];
  int l = threadIdx.x;
  for (int k = l; k < 16 * K; k += 32) sa[k] = a[k];
  for (int k = l; k < 8 * K; k += 32) sb[k] = b[k];
  __syncwarp();
  uint32_t A[4], B[2];
  auto address = [](const void* p) { return uint32_t(__cvta_generic_to_shared(p)); };
  float D[4] = {1, 2, 3, 4};
  if constexpr (K == 16) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(A[0]), "=r"(A[1]), "=r"(A[2]), "=r"(A[3])
                 : "r"(address(sa + (l % 16) * K + 8 * (l / 16))));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(B[0]), "=r"(B[1])
                 : "r"(address(sb + (l % 8) * K + 8 * (l / 8 % 2))));
  } else {
    int g = l / 4, q = l % 4;
    for (int r = 0; r < 4; ++r) A[r] = __float_as_uint(float(sa[(g + 8 * (r & 1)) * K + q + 4 * (r >> 1)]));
    for (int r = 0; r < 2; ++r) B[r] = __float_as_uint(float(sb[g * K + q + 4 * r]));
  }
#define MMA(shape, type)                                                                                     \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, "             \
               "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                               \
               : "+f"(D[0]), "+f"(D[1]), "+f"(D[2]), "+f"(D[3])                                              \
               : "r"(A[0]), "r"(A[1]), "r"(A[2]), "r"(A[3]), "r"(B[0]), "r"(B[1]));
  if constexpr (K == 8) { MMA("m16n8k8", "tf32") }
  else if constexpr (sizeof(T) == 2 && __is_same(T, __half)) { MMA("m16n8k16", "f16") }
  else { MMA("m16n8k16", "bf16") }
  for (int r = 0; r < 4; ++r) d[(l / 4 + 8 * (r >> 1)) * 8 + 2 * (l % 4) + (r & 1)] = D[r];
}

extern "C" __global__ void product_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* d) {
  product<__nv_bfloat16, 16>(a, b, d);
}
extern "C" __global__ void product_f16(const __half* a, const __half* b, float* d) { product<__half, 16>(a, b, d); }
extern "C" __global__ void product_tf32(const float* a, const float* b, float* d) { product<float, 8>(a, b, d); }

extern "C" __global__ void transposed(const uint16_t* a, uint32_t* d) {
  __shared__ alignas(16) uint16_t s[64];
  int l = threadIdx.x;
  s[l] = a[l];
  s[l + 32] = a[l + 32];
  __syncwarp();
  asm volatile("{.reg .b32 r; ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {r}, [%0]; st.global.b32 [%1], r;}" ::"r"(
      uint32_t(__cvta_generic_to_shared(s + 8 * (l % 8)))), "l"(d + l));
}

// Copies x in pieces of 64 floats through two buffers; fault 1: no wait, 2: one buffer, 3: no barrier.
extern "C" __global__ void staged(const float* x, float* y, int pieces, int valid, int fault) {
  __shared__ alignas(16) float buffer[2][64];
  int i = threadIdx.x;
  auto fetch = [&](int piece) {
    int left = 4 * (valid - 64 * piece - 4 * i);
    uint32_t bytes = left <= 0 ? 0 : left < 16 ? left : 16;
    uint32_t to = uint32_t(__cvta_generic_to_shared(&buffer[fault == 2 ? 0 : piece & 1][4 * i]));
    const float* from = x + (bytes ? 64 * piece + 4 * i : 0);
    if (i < 16 && piece < pieces)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  fetch(0);
  for (int piece = 0; piece < pieces; ++piece) {
    fetch(piece + 1);
    if (fault != 1) asm volatile("cp.async.wait_group 1;" ::: "memory");
    if (fault != 3) __syncthreads();
    y[64 * piece + i] = buffer[fault == 2 ? 0 : piece & 1][i ^ 63];
    if (fault != 3) __syncthreads();
  }
}

// Warp 0 produces, warp 1 consumes, by named barriers; fault 1: the producer does not wait for the consumer.
extern "C" __global__ void named_barriers(float* y, int steps, int fault) {
  __shared__ float value[32];
  int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    for (int k = 0; k < steps; ++k) {
      if (k && fault != 1) asm volatile("bar.sync 2, 64;" ::: "memory");
      value[lane] = float(100 * k + lane);
      asm volatile("bar.arrive 1, 64;" ::: "memory");
    }
  } else {
    for (int k = 0; k < steps; ++k) {
      asm volatile("bar.sync 1, 64;" ::: "memory");
      y[32 * k + lane] = value[31 - lane];
      if (k + 1 < steps) asm volatile("bar.arrive 2, 64;" ::: "memory");
    }
  }
}

// All blocks meet after each step; fault 1: no fence, 2: no wait.
extern "C" __global__ void grid_barrier(float* x, unsigned* arrived, int steps, int fault) {
  int n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int k = 0; k < steps; ++k) {
    x[(k + 1) * n + i] = x[k * n + (i + blockDim.x + 1) % n] + 1;
    __syncthreads();
    if (threadIdx.x == 0) {
      if (fault != 1) __threadfence();
      atomicAdd(arrived, 1);
      while (fault != 2 && *reinterpret_cast<volatile unsigned*>(arrived) < (k + 1) * gridDim.x) {}
      if (fault != 1) __threadfence();
    }
    __syncthreads();
  }
}

extern "C" __global__ void faulty(float* x, int fault) {
  __shared__ float s[32];
  int i = threadIdx.x;
  if (fault == 0) x[i] = s[i];
  if (fault == 1) x[i + 1] = 0;
  if (fault == 2) *reinterpret_cast<float2*>(x + 1) = float2{0, 0};
  if (fault == 3) s[i + 1] = x[i], x[i] = s[i ^ 1];
  if (fault == 4 && i < 16) __syncthreads();
  if (fault == 5) __trap();
  if (fault == 6 && i < 16) x[i] = __shfl_sync(0xffffffffu, x[i], 1);
  if (fault == 7) {
    if (i == 0) while (*reinterpret_cast<volatile float*>(x) == 0) {}
  }
}
