#include "cuda/launch.h"

#include <cuda_runtime.h>

#include "cuda/check.h"

namespace xlstm_fused::cuda {
namespace {

// The configuration of a launch, with the attributes that it points to.
class Configuration {
 public:
  Configuration(const void* kernel, dim3 grid, const Plan& plan, const Launch& launch) {
    // The current device of this copy of the runtime; the caller has made it the thread's.
    check(cudaSetDevice(launch.device), "cudaSetDevice");
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(launch.shared_bytes)),
          "shared memory of the kernel");
    if (launch.exchange == Exchange::cluster && plan.programs > 8) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "clusters of 16");
    }
    config_.gridDim = grid;
    config_.blockDim = dim3(launch.warps * 32);
    config_.dynamicSmemBytes = size_t(launch.shared_bytes);
    config_.stream = static_cast<cudaStream_t>(launch.stream);
    if (launch.exchange == Exchange::cluster) {
      attribute_.id = cudaLaunchAttributeClusterDimension;
      attribute_.val.clusterDim.x = unsigned(plan.programs);
      attribute_.val.clusterDim.y = attribute_.val.clusterDim.z = 1;
    } else if (launch.exchange == Exchange::grid) {
      // All programs run at once, or the launch fails.
      attribute_.id = cudaLaunchAttributeCooperative;
      attribute_.val.cooperative = 1;
    }
    config_.attrs = &attribute_;
    config_.numAttrs = launch.exchange == Exchange::alone ? 0 : 1;
  }
  Configuration(const Configuration&) = delete;
  Configuration& operator=(const Configuration&) = delete;

  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchConfig_t config_ = {};
  cudaLaunchAttribute attribute_ = {};
};

void run(const void* kernel, const Problem& p, const Plan& plan, const Launch& launch, void** arguments) {
  if (p.rows.B == 0) return;
  const int64_t tiles = (p.rows.B + launch.tiles * kTile - 1) / (launch.tiles * kTile);
  dim3 grid(unsigned(tiles * plan.programs), unsigned(p.N), unsigned(p.K));
  if (launch.exchange == Exchange::grid) grid = dim3(unsigned(launch.groups * plan.programs));
  const Configuration configuration(kernel, grid, plan, launch);
  check(cudaLaunchKernelExC(configuration.get(), kernel, arguments), "launch");
}

}  // namespace

void recurrence_fwd(const ForwardParams& params, const Input& input, const Plan& plan, uint64_t* words,
                    const void* kernel, const Launch& launch) {
  void* arguments[] = {const_cast<ForwardParams*>(&params), const_cast<Plan*>(&plan), &words,
                       const_cast<Input*>(&input)};
  run(kernel, params, plan, launch, arguments);
}

void recurrence_bwd(const BackwardParams& params, const Plan& plan, uint64_t* words, const void* weight_t,
                    const void* kernel, const Launch& launch) {
  void* arguments[] = {const_cast<BackwardParams*>(&params), const_cast<Plan*>(&plan), &words, &weight_t};
  run(kernel, params, plan, launch, arguments);
}

int resident(const void* kernel, const Plan& plan, const Launch& launch) {
  const Configuration configuration(kernel, dim3(unsigned(plan.programs)), plan, launch);
  int count = 0;
  if (launch.exchange == Exchange::cluster) {
    check(cudaOccupancyMaxActiveClusters(&count, kernel, configuration.get()), "clusters that fit");
  } else {
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, launch.warps * 32,
                                                        size_t(launch.shared_bytes)), "programs that fit");
    if (launch.exchange == Exchange::grid) {
      int processors = 0;
      check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, launch.device), "multiprocessors");
      count = count * processors / plan.programs;
    }
  }
  return count;
}

}  // namespace xlstm_fused::cuda
