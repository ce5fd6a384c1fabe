// Passing on what a program computed in a step: the instructions, and the wait that cannot hang.
#pragma once

#include <stdint.h>

#include "cuda/plan.h"

namespace xlstm_fused::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ int64_t nanoseconds() {
  int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// Ends the kernel with an error where a wait has taken too long: a lost message must not hang the device.
class Watchdog {
 public:
  __device__ __forceinline__ explicit Watchdog(int64_t limit) : limit_(limit), start_(nanoseconds()) {}
  __device__ __forceinline__ void check() const {
    if (nanoseconds() - start_ > limit_) __trap();
  }

 private:
  const int64_t limit_, start_;
};

// Through global memory: words of 32 bits of data and the tag of the step that they are for. A word is loaded and
// stored as a whole, so whoever finds the tag has the data, and nothing else need be ordered: no fence, no flag, no
// barrier.

struct Word {
  uint32_t data, tag;
};

__device__ __forceinline__ void store_word(uint64_t* at, Word x) {
  asm volatile("{\n\t.reg .b64 w;\n\tmov.b64 w, {%1, %2};\n\tst.relaxed.gpu.global.b64 [%0], w;\n\t}" ::"l"(at),
               "r"(x.data), "r"(x.tag)
               : "memory");
}

struct WordPair {
  Word first, second;
  __device__ __forceinline__ bool has(uint32_t tag) const { return first.tag == tag && second.tag == tag; }
};

__device__ __forceinline__ void store_pair(uint64_t* at, WordPair x) {
  asm volatile(
      "{\n\t.reg .b64 v, w;\n\tmov.b64 v, {%1, %2};\n\tmov.b64 w, {%3, %4};\n\t"
      "st.relaxed.gpu.global.v2.b64 [%0], {v, w};\n\t}" ::"l"(at),
      "r"(x.first.data), "r"(x.first.tag), "r"(x.second.data), "r"(x.second.tag)
      : "memory");
}

__device__ __forceinline__ WordPair load_pair(const uint64_t* at) {
  WordPair x;
  asm volatile(
      "{\n\t.reg .b64 v, w;\n\tld.relaxed.gpu.global.v2.b64 {v, w}, [%4];\n\t"
      "mov.b64 {%0, %1}, v;\n\tmov.b64 {%2, %3}, w;\n\t}"
      : "=r"(x.first.data), "=r"(x.first.tag), "=r"(x.second.data), "=r"(x.second.tag)
      : "l"(at)
      : "memory");
  return x;
}

// Loads `pair` again until it has the tag.
__device__ __forceinline__ void await(WordPair& pair, const uint64_t* at, uint32_t tag, int64_t limit) {
  if (pair.has(tag)) return;
  const Watchdog watchdog(limit);
  do {
    watchdog.check();
    pair = load_pair(at);
  } while (!pair.has(tag));
}

// From here on for Hopper and later.

__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
}

// All threads of the cluster; what they wrote before it is seen by all after it.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The end of a task. No program may leave while others still store to its shared memory, and none may begin another
// task in its own while a warp still reads there.
template <Exchange kExchange>
__device__ __forceinline__ void finish() {
  if constexpr (kExchange == Exchange::cluster) cluster_barrier();
  if constexpr (kExchange == Exchange::grid) __syncthreads();
}

// The address in a peer's shared memory of what this program has at `address`.
__device__ __forceinline__ uint32_t peer_address(uint32_t address, int peer) {
  uint32_t result;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address), "r"(peer));
  return result;
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes the initialised barriers known to the peers, whose stores complete on them.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and tells the barrier how many bytes will come from peers in this phase; some may have come already.
__device__ __forceinline__ void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ bool barrier_test(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n\t.reg .pred p;\n\t"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, p;\n\t}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity, int64_t limit) {
  if (barrier_test(barrier, parity)) return;
  const Watchdog watchdog(limit);
  while (!barrier_test(barrier, parity)) watchdog.check();
}

// Stores to a peer that complete, with their bytes, on the peer's barrier.
__device__ __forceinline__ void push(uint32_t address, uint4 x, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   address),
               "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(barrier)
               : "memory");
}

__device__ __forceinline__ void push(uint32_t address, float2 x, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(address),
               "r"(__float_as_uint(x.x)), "r"(__float_as_uint(x.y)), "r"(barrier)
               : "memory");
}

}  // namespace xlstm_fused::cuda
