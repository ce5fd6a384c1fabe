// What it costs that processors which share a recurrent matrix meet once per step: each way of meeting, alone.
//
//   nvcc -O3 -std=c++17 -arch=sm_90a -o exchange benchmarks/exchange.cu && ./exchange
//
// Prints one JSON object per line: "way", "ctas" that meet, microseconds "us" per meeting (the least of five launches,
// launch included over 20,000 meetings), and "ok", whether the values that were exchanged were the right ones.
// "resident" lines say how many clusters of a size the device holds at once.

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace cg = cooperative_groups;

constexpr int THREADS = 128;
constexpr int MEETINGS = 20000;
constexpr int REPEATS = 5;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define HAS_CLUSTERS 1
#else
#define HAS_CLUSTERS 0
#endif

#define CHECK(call)                                                                                   \
    do {                                                                                              \
        cudaError_t status = (call);                                                                  \
        if (status != cudaSuccess) {                                                                  \
            std::fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(status));                      \
            std::exit(1);                                                                             \
        }                                                                                             \
    } while (0)

// What CTA `rank` says to the others in meeting `step`: 31 bits, never zero.
__host__ __device__ inline uint32_t word(int step, int rank, int thread) {
    return (uint32_t(step) * 2654435761u ^ uint32_t(rank) << 16 ^ uint32_t(thread)) >> 1 | 1u;
}

__device__ inline uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

#if HAS_CLUSTERS
__device__ inline uint32_t peer_address(uint32_t address, int rank) {
    uint32_t result;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address), "r"(rank));
    return result;
}
#endif

__global__ void nothing_kernel() {}

__global__ void cluster_sync_kernel(uint32_t* wrong, int meetings) {
#if HAS_CLUSTERS
    auto cluster = cg::this_cluster();
    for (int step = 0; step < meetings; ++step) cluster.sync();
#endif
}

__global__ void grid_sync_kernel(uint32_t* wrong, int meetings) {
    auto grid = cg::this_grid();
    for (int step = 0; step < meetings; ++step) grid.sync();
}

// Every thread sends a word to the same place in each CTA of its cluster, which waits for all of them: st.async, whose
// bytes an mbarrier of the receiver counts. Two buffers: nobody is more than one meeting ahead of anybody.
__global__ void push_kernel(uint32_t* wrong, int meetings) {
#if HAS_CLUSTERS
    extern __shared__ uint32_t buffers[];  // (2, cluster, THREADS)
    __shared__ alignas(8) uint64_t barriers[2];
    auto cluster = cg::this_cluster();
    const int peers = cluster.num_blocks(), rank = cluster.block_rank(), thread = threadIdx.x;
    const uint32_t bytes = peers * THREADS * 4;
    if (thread == 0) {
        for (auto& barrier : barriers) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&barrier)));
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
                         "r"(bytes)
                         : "memory");
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster.sync();
    uint32_t mistakes = 0;
    for (int step = 0; step < meetings; ++step) {
        const int buffer = step & 1;
        const uint32_t parity = step >> 1 & 1, barrier = shared_address(&barriers[buffer]);
        const uint32_t place = shared_address(buffers + (buffer * peers + rank) * THREADS + thread);
        for (int peer = 0; peer < peers; ++peer) {
            asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                             peer_address(place, peer)),
                         "r"(word(step, rank, thread)), "r"(peer_address(barrier, peer))
                         : "memory");
        }
        uint32_t done = 0;
        while (!done) {
            asm volatile(
                "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;"
                " selp.u32 %0, 1, 0, p; }"
                : "=r"(done)
                : "r"(barrier), "r"(parity)
                : "memory");
        }
        for (int peer = 0; peer < peers; ++peer) {
            mistakes += buffers[(buffer * peers + peer) * THREADS + thread] != word(step, peer, thread);
        }
        // All threads have read this buffer before anyone learns, by the next meeting, that it may be written again.
        __syncthreads();
        if (thread == 0) {
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                         : "memory");
        }
    }
    cluster.sync();
    if (mistakes) atomicAdd(wrong, mistakes);
#endif
}

// Every CTA writes 16 bytes per thread to global memory, three words and the step, and each waits for the data of all
// by looking at the step inside of it: no barrier, no flag. That 16 aligned bytes become visible at once is what
// processors do and not what PTX promises: "ok" says whether it held.
__global__ void flag_in_data_kernel(uint32_t* wrong, int meetings, uint4* slots) {  // slots: (2, grid, THREADS), zero
    const int ctas = gridDim.x, thread = threadIdx.x;
    uint32_t mistakes = 0;
    for (int step = 0; step < meetings; ++step) {
        uint4* buffer = slots + int64_t(step & 1) * ctas * THREADS;
        const uint32_t tag = step + 1;
        asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(
                         buffer + blockIdx.x * THREADS + thread),
                     "r"(word(step, blockIdx.x, thread)), "r"(step), "r"(thread), "r"(tag)
                     : "memory");
        // A warp looks at its share of the CTAs, lane by lane.
        for (int index = thread; index < ctas * THREADS; index += THREADS) {
            uint4 seen;
            do {
                asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(seen.x), "=r"(seen.y), "=r"(seen.z), "=r"(seen.w)
                             : "l"(buffer + index)
                             : "memory");
            } while (seen.w != tag);
            mistakes += seen.x != word(step, index / THREADS, index % THREADS);
        }
        // Nobody writes this buffer again before all of this CTA have read it: they must see the next step of this
        // CTA first, and it is written behind this barrier.
        __syncthreads();
    }
    if (mistakes) atomicAdd(wrong, mistakes);
}

// One word per CTA in place of all data: the least that any exchange through the second-level cache can cost.
__global__ void flag_kernel(uint32_t* wrong, int meetings, uint32_t* flags) {  // flags: (grid, 32), zero
    for (int step = 0; step < meetings; ++step) {
        if (threadIdx.x == 0) {
            asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flags + blockIdx.x * 32), "r"(step + 1)
                         : "memory");
        }
        for (int cta = threadIdx.x; cta < gridDim.x; cta += THREADS) {
            int seen;
            do {
                asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flags + cta * 32) : "memory");
            } while (seen < step + 1);
        }
        __syncthreads();
    }
}

struct Launch {
    const void* kernel;
    int ctas;
    int cluster = 1;
    bool cooperative = false;
    size_t shared = 0;

    cudaLaunchConfig_t config(cudaLaunchAttribute* attributes) const {
        cudaLaunchConfig_t result{};
        result.gridDim = ctas;
        result.blockDim = THREADS;
        result.dynamicSmemBytes = shared;
        result.attrs = attributes;
        if (cluster > 1) {
            attributes[result.numAttrs].id = cudaLaunchAttributeClusterDimension;
            attributes[result.numAttrs].val.clusterDim.x = cluster;
            attributes[result.numAttrs].val.clusterDim.y = 1;
            attributes[result.numAttrs++].val.clusterDim.z = 1;
        }
        if (cooperative) {
            attributes[result.numAttrs].id = cudaLaunchAttributeCooperative;
            attributes[result.numAttrs++].val.cooperative = 1;
        }
        return result;
    }
};

void report(const char* way, int ctas, double us, bool ok) {
    std::printf("{\"way\": \"%s\", \"ctas\": %d, \"us\": %.4f, \"ok\": %s}\n", way, ctas, us, ok ? "true" : "false");
    std::fflush(stdout);
}

void prepare(const Launch& launch) {
    if (launch.cluster > 8) {
        CHECK(cudaFuncSetAttribute(launch.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    }
    if (launch.shared > 0) {
        CHECK(cudaFuncSetAttribute(launch.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(launch.shared)));
    }
}

// `scratch_bytes` of zeros are the kernel's third argument, where it takes one.
void measure(const char* way, const Launch& launch, size_t scratch_bytes = 0) {
    prepare(launch);
    uint32_t* wrong;
    void* scratch = nullptr;
    CHECK(cudaMalloc(&wrong, 4));
    CHECK(cudaMemset(wrong, 0, 4));
    if (scratch_bytes > 0) CHECK(cudaMalloc(&scratch, scratch_bytes));
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    float least = 1e30f;
    for (int repeat = 0; repeat < REPEATS; ++repeat) {
        int meetings = MEETINGS;
        void* arguments[] = {&wrong, &meetings, &scratch};
        cudaLaunchAttribute attributes[2];
        const cudaLaunchConfig_t config = launch.config(attributes);
        if (scratch != nullptr) CHECK(cudaMemset(scratch, 0, scratch_bytes));
        CHECK(cudaEventRecord(begin));
        CHECK(cudaLaunchKernelExC(&config, launch.kernel, arguments));
        CHECK(cudaEventRecord(end));
        CHECK(cudaEventSynchronize(end));
        float ms;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        least = std::min(least, ms);
    }
    uint32_t mistakes;
    CHECK(cudaMemcpy(&mistakes, wrong, 4, cudaMemcpyDeviceToHost));
    report(way, launch.cluster > 1 ? launch.cluster : launch.ctas, 1e3 * least / MEETINGS, mistakes == 0);
    CHECK(cudaFree(wrong));
    if (scratch != nullptr) CHECK(cudaFree(scratch));
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
}

// Kernels one behind the other, as launches and as the nodes of a graph.
void measure_launches() {
    constexpr int LAUNCHES = 1000;
    cudaStream_t stream;
    cudaEvent_t begin, end;
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    cudaGraph_t graph;
    cudaGraphExec_t instance;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int launch = 0; launch < LAUNCHES; ++launch) nothing_kernel<<<1, THREADS, 0, stream>>>();
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&instance, graph, 0));
    for (bool as_graph : {false, true}) {
        float least = 1e30f;
        for (int repeat = 0; repeat < REPEATS; ++repeat) {
            CHECK(cudaEventRecord(begin, stream));
            if (as_graph) {
                CHECK(cudaGraphLaunch(instance, stream));
            } else {
                for (int launch = 0; launch < LAUNCHES; ++launch) nothing_kernel<<<1, THREADS, 0, stream>>>();
            }
            CHECK(cudaEventRecord(end, stream));
            CHECK(cudaEventSynchronize(end));
            float ms;
            CHECK(cudaEventElapsedTime(&ms, begin, end));
            least = std::min(least, ms);
        }
        report(as_graph ? "graph node" : "launch", 1, 1e3 * least / LAUNCHES, true);
    }
    CHECK(cudaGraphExecDestroy(instance));
    CHECK(cudaGraphDestroy(graph));
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
    CHECK(cudaStreamDestroy(stream));
}

int main() {
    int device, processors, major, shared_limit;
    CHECK(cudaGetDevice(&device));
    CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    CHECK(cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    measure_launches();
    if (major >= 9) {
        for (int cluster : {2, 4, 8, 16}) {
            measure("cluster.sync", {(const void*)cluster_sync_kernel, cluster, cluster});
            measure("push", {(const void*)push_kernel, cluster, cluster, false, size_t(2) * cluster * THREADS * 4});
            for (int shared : {0, shared_limit - (1 << 10)}) {
                Launch launch{(const void*)push_kernel, processors / cluster * cluster, cluster, false,
                              std::max<size_t>(shared, size_t(2) * cluster * THREADS * 4)};
                prepare(launch);
                cudaLaunchAttribute attributes[2];
                const cudaLaunchConfig_t config = launch.config(attributes);
                int resident;
                CHECK(cudaOccupancyMaxActiveClusters(&resident, launch.kernel, &config));
                std::printf("{\"way\": \"resident\", \"ctas\": %d, \"shared\": %zu, \"clusters\": %d}\n", cluster,
                            launch.shared, resident);
            }
        }
    }
    for (int ctas : {8, 32, 64, 128}) {
        if (ctas > processors) continue;
        measure("grid.sync", {(const void*)grid_sync_kernel, ctas, 1, true});
        measure("flag", {(const void*)flag_kernel, ctas, 1, true}, size_t(ctas) * 32 * 4);
        measure("flag in data", {(const void*)flag_in_data_kernel, ctas, 1, true},
                size_t(2) * ctas * THREADS * sizeof(uint4));
    }
}
