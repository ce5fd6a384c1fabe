// Kernels for test_ptx_interpreter.py: clusters, distributed shared memory and mbarriers (sm_90 and later).
#include <stdint.h>

namespace {

__device__ uint32_t address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
__device__ uint32_t rank() {
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
__device__ uint32_t mapped(uint32_t a, uint32_t to) {
  uint32_t r;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(to));
  return r;
}
__device__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
__device__ void init(uint64_t* bar, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(bar)), "r"(count) : "memory");
}
__device__ void expect(uint64_t* bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(bar)), "r"(bytes) : "memory");
}
__device__ void wait(uint64_t* bar, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni DONE;\nbra.uni AGAIN;\nDONE:\n}" ::"r"(address(bar)), "r"(parity) : "memory");
}

}  // namespace

// h[t + 1] = 2 h[t] rolled by one, + 1, over (blocks, 64): each block owns 64 of the elements and sends them to all.
// fault 1: no wait, 2: one buffer, 3: a last send that nobody waits for, 4: no barrier after the init, 5: a wrong count
// of bytes.
extern "C" __global__ void recurrence(const float* h0, float* h, int steps, int blocks, int fault) {
  extern __shared__ __align__(16) float buffer[];
  __shared__ alignas(8) uint64_t full[2];
  int me = rank(), i = threadIdx.x, size = 64 * blocks;
  for (int k = i; k < size; k += 64) buffer[k] = h0[k];
  if (i == 0) {
    init(&full[0], 1);
    init(&full[1], 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (fault != 4) cluster_sync();
  __syncthreads();
  for (int t = 0; t < steps; ++t) {
    int from = fault == 2 ? 0 : t & 1, to = fault == 2 ? 0 : from ^ 1;
    if (t && fault != 1) wait(&full[t & 1], ((t - 1) / 2) & 1);
    if (i == 0 && t + 1 < steps) expect(&full[(t + 1) & 1], 4 * size + (fault == 5 ? 16 : 0));
    float value = 2 * buffer[from * size + (64 * me + i + 1) % size] + 1;
    h[t * size + 64 * me + i] = value;
    if (t + 1 < steps || fault == 3)
      for (int peer = 0; peer < blocks; ++peer)
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                         mapped(address(buffer + to * size + 64 * me + i), peer)),
                     "r"(__float_as_uint(value)), "r"(mapped(address(&full[(t + 1) & 1]), peer)) : "memory");
  }
}

// Each block passes its values on to the next, by plain stores. fault 1: a relaxed arrive, 2: no barrier at the start,
// 3: none at the end.
extern "C" __global__ void ring(const float* x, float* y, int fault) {
  __shared__ float got[64], mine[64];
  uint32_t blocks, i = threadIdx.x;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  mine[i] = 0;
  got[i] = -1;
  if (fault != 2) cluster_sync();
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(mapped(address(got + i), (rank() + 1) % blocks)),
               "f"(x[64 * blockIdx.x + i]) : "memory");
  if (fault == 1)
    asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;" ::: "memory");
  else
    cluster_sync();
  float remote;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(remote) : "r"(mapped(address(got + i), rank() ^ 1)));
  y[64 * blockIdx.x + i] = got[63 - i] + 1000 * remote + mine[i];
  if (fault != 3) cluster_sync();
}

// Bulk copies: global to shared, and on to the next block. fault 1: no proxy fence, 2: the source is overwritten.
extern "C" __global__ void bulk(const float* x, float* y, int fault) {
  __shared__ alignas(16) float in[256], out[256], got[256];
  __shared__ alignas(8) uint64_t bars[2];
  int i = threadIdx.x;
  if (i == 0) {
    init(&bars[0], 1);
    init(&bars[1], 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  cluster_sync();
  if (i == 0) {
    expect(&bars[0], 1024);
    expect(&bars[1], 1024);
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     address(in)), "l"(x + 256 * blockIdx.x), "r"(1024), "r"(address(&bars[0])) : "memory");
  }
  wait(&bars[0], 0);
  for (int k = i; k < 256; k += 64) out[k] = 2 * in[k];
  if (fault != 1) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  uint32_t next = rank() ^ 1;
  if (i == 0)
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     mapped(address(got), next)), "r"(address(out)), "r"(1024), "r"(mapped(address(&bars[1]), next))
                 : "memory");
  if (fault == 2) out[i] = 0;
  wait(&bars[1], 0);
  for (int k = i; k < 256; k += 64) y[256 * blockIdx.x + k] = got[255 - k];
  cluster_sync();
}

// Remote arrivals: block 0 waits until every thread of every block has stored. fault 1: arrivals of scope cta.
extern "C" __global__ void remote_arrivals(float* y, int blocks, int fault) {
  extern __shared__ __align__(16) float buffer[];
  __shared__ alignas(8) uint64_t bar;
  int i = threadIdx.x, me = rank();
  if (i == 0) init(&bar, 64 * blocks);
  cluster_sync();
  float value = float(100 * me + i);
  uint32_t place = mapped(address(buffer + 64 * me + i), 0);
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(place), "f"(value) : "memory");
  uint32_t there = mapped(address(&bar), 0);
  if (fault == 1)
    asm volatile("mbarrier.arrive.release.cta.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
  else
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
  if (me == 0) {
    wait(&bar, 0);
    for (int k = i; k < 64 * blocks; k += 64) y[k] = buffer[64 * blocks - 1 - k];
  }
  cluster_sync();
}
