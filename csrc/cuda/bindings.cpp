// The module xlstm_fused._cuda. Arrays come as addresses, 0 for none; xlstm_fused/backends/cuda has checked them.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cells/cells.h"
#include "cuda/launch.h"
#include "fields.h"

using namespace xlstm_fused;
using namespace xlstm_fused::cuda;

namespace {

Instances find_instances(const std::string& kind, Exchange exchange, bool backward) {
#define XLSTM_FUSED_FIND(name, way)                    \
  if (kind == #name && exchange == Exchange::way) {    \
    return backward ? &bwd_##name##_##way : &fwd_##name##_##way; \
  }
  XLSTM_FUSED_INSTANCES(XLSTM_FUSED_FIND)
#undef XLSTM_FUSED_FIND
  throw std::invalid_argument("kind: there is no kernel for '" + kind + "'");
}

const void* find_kernel(const std::string& cell, const std::string& kind, bool backward, const Launch& launch) {
  int index = 0, found = -1;
#define XLSTM_FUSED_FIND(name, Cell) \
  if (cell == #name) found = index;  \
  ++index;
  XLSTM_FUSED_CELLS(XLSTM_FUSED_FIND)
#undef XLSTM_FUSED_FIND
  const void* kernel = find_instances(kind, launch.exchange, backward)(found, launch.tiles);
  if (!kernel) throw std::invalid_argument("there is no kernel for cell '" + cell + "' with this plan");
  return kernel;
}

Exchange exchange_of(const std::string& name) {
  if (name == "alone") return Exchange::alone;
  if (name == "cluster") return Exchange::cluster;
  if (name == "grid") return Exchange::grid;
  throw std::invalid_argument("exchange: unknown: " + name);
}

// (exchange, tiles, warps, shared_bytes, groups)
Launch launch_of(const py::tuple& shape, int device, uintptr_t stream) {
  if (shape.size() != 5) throw std::invalid_argument("shape: expected 5 fields");
  return {exchange_of(shape[0].cast<std::string>()), shape[1].cast<int>(), shape[2].cast<int>(),
          shape[3].cast<int64_t>(), shape[4].cast<int>(), device, reinterpret_cast<void*>(stream)};
}

Plan plan_of(const py::tuple& values) {
  if (values.size() != 10) throw std::invalid_argument("plan: expected 10 fields");
  const auto number = [&](int i) { return values[i].cast<int32_t>(); };
  return {number(0), number(1), number(2), number(3), number(4), number(5), number(6), number(7),
          values[8].cast<int64_t>(), values[9].cast<int64_t>()};
}

void check(const Problem& p) {
  check_sizes(p);
  // The kernels keep the number of a row in 32 bits; what lies in it is found with 64.
  if (p.rows.P >= int64_t(1) << 31) throw std::invalid_argument("rows: expected fewer than 2^31");
  if (p.N >= 1 << 16) throw std::invalid_argument("heads: expected fewer than 2^16");
}

void forward(const std::string& cell, const std::string& kind, const py::tuple& shape, const py::tuple& plan,
             int device, uintptr_t stream, const py::tuple& problem, const py::tuple& arrays, uintptr_t words) {
  const ForwardParams p = forward_params(problem, arrays);
  check(p);
  const Launch launch = launch_of(shape, device, stream);
  recurrence_fwd(p, plan_of(plan), reinterpret_cast<uint64_t*>(words), find_kernel(cell, kind, false, launch), launch);
}

void backward(const std::string& cell, const std::string& kind, const py::tuple& shape, const py::tuple& plan,
              int device, uintptr_t stream, const py::tuple& problem, const py::tuple& arrays, uintptr_t words,
              uintptr_t weight_t) {
  const BackwardParams p = backward_params(problem, arrays);
  check(p);
  const Launch launch = launch_of(shape, device, stream);
  recurrence_bwd(p, plan_of(plan), reinterpret_cast<uint64_t*>(words), reinterpret_cast<const void*>(weight_t),
                 find_kernel(cell, kind, true, launch), launch);
}

int resident_programs(const std::string& cell, const std::string& kind, bool backward, const py::tuple& shape,
                      const py::tuple& plan, int device) {
  const Launch launch = launch_of(shape, device, 0);
  return resident(find_kernel(cell, kind, backward, launch), plan_of(plan), launch);
}

py::list cells() {
  py::list names;
#define XLSTM_FUSED_NAME(cell, Cell) names.append(#cell);
  XLSTM_FUSED_CELLS(XLSTM_FUSED_NAME)
#undef XLSTM_FUSED_NAME
  return names;
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "Fused recurrences on NVIDIA GPUs. Arrays are passed as addresses, 0 for none; nothing waits.";
#define ARGUMENTS \
  py::arg("cell"), py::arg("kind"), py::arg("shape"), py::arg("plan"), py::arg("device"), py::arg("stream"), \
      py::arg("problem"), py::arg("arrays"), py::arg("words")
  module.def("forward", &forward, ARGUMENTS,
             "Launch one recurrence: the fields of Problem, then the others of ForwardParams, in csrc/params.h; and the zeros "
             "through which the programs of a grid exchange what they compute.");
  module.def("backward", &backward, ARGUMENTS, py::arg("weight_t"),
             "Launch its gradients: the fields of Problem, then the others of BackwardParams, and R as (K, N, D_in, "
             "D_out, G).");
#undef ARGUMENTS
  module.def("resident", &resident_programs, py::arg("cell"), py::arg("kind"), py::arg("backward"), py::arg("shape"),
             py::arg("plan"), py::arg("device"),
             "How many programs (clusters, groups of them) of a plan the device runs at once; 0 if not even one.");
  module.attr("archs") = XLSTM_FUSED_ARCHS;
  module.def("cells", &cells, "The cells that there are kernels for.");
}
