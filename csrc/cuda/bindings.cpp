// The module xlstm_fused._cuda. Arrays come as addresses, 0 for none; xlstm_fused/backends/cuda has checked them.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cells/cells.h"
#include "checks.h"
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

struct Cell {
  int index;  // in cells/cells.h
  CellSizes sizes;
};

Cell find_cell(const std::string& cell) {
  int index = 0;
#define XLSTM_FUSED_FIND(name, Cell)                              \
  if (cell == #name) return {index, {Cell::G, Cell::S}};          \
  ++index;
  XLSTM_FUSED_CELLS(XLSTM_FUSED_FIND)
#undef XLSTM_FUSED_FIND
  throw std::invalid_argument("cell: there is no kernel for '" + cell + "'");
}

const void* find_kernel(const Cell& cell, const std::string& kind, bool backward, const Launch& launch) {
  const void* kernel = find_instances(kind, launch.exchange, backward)(cell.index, launch.tiles);
  if (!kernel) throw std::invalid_argument("tiles: there is no kernel for " + std::to_string(launch.tiles));
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
  const Launch launch{exchange_of(shape[0].cast<std::string>()), shape[1].cast<int>(), shape[2].cast<int>(),
                      shape[3].cast<int64_t>(), shape[4].cast<int>(), device, reinterpret_cast<void*>(stream)};
  require_at_least(1, "warps", launch.warps);
  require_below(33, "warps", launch.warps);
  require_at_least(0, "shared_bytes", launch.shared_bytes);
  require_below(1 << 20, "shared_bytes", launch.shared_bytes);
  require_at_least(1, "groups", launch.groups);
  require_below(1 << 15, "groups", launch.groups);
  require_at_least(0, "device", device);
  return launch;
}

Plan plan_of(const py::tuple& values, const Launch& launch) {
  if (values.size() != 10) throw std::invalid_argument("plan: expected 10 fields");
  const auto number = [&](int i) { return values[i].cast<int32_t>(); };
  const Plan plan{number(0), number(1), number(2), number(3), number(4), number(5), number(6), number(7),
                  values[8].cast<int64_t>(), values[9].cast<int64_t>()};
  require_at_least(1, "programs", plan.programs);
  require_below(1 << 15, "programs", plan.programs);
  // A grid may have warps without units.
  require_at_least(launch.exchange == Exchange::grid ? 8 : launch.warps * 8, "units", plan.units);
  require_below(launch.warps * 8 + 1, "units", plan.units);
  require_at_least(1, "chunks", plan.chunks);
  require_at_least(1, "splits", plan.splits);
  require_at_least(0, "shared_chunks", plan.shared_chunks);
  require_at_least(1, "row_bytes", plan.row_bytes);
  require_at_least(0, "partials", plan.partials);
  require_at_least(0, "fragments", plan.fragments);
  require_at_least(1, "watchdog", plan.watchdog);
  require_at_least(launch.exchange == Exchange::grid ? 1 : 0, "words", plan.words);
  return plan;
}

void check(const Problem& p, const Plan& plan, const Launch& launch, uintptr_t words) {
  // The kernels keep the number of a row in 32 bits; what lies in it is found with 64.
  require_below(int64_t(1) << 31, "P", p.rows.P);
  require_below(int64_t(1) << 30, "B", p.rows.B);
  require_below(1 << 16, "N", p.N);
  require_below(int64_t(plan.programs) * plan.units + 1, "D", p.D);
  if (launch.exchange == Exchange::grid) require_address("words", reinterpret_cast<const void*>(words));
}

// The input product is formed where its programs have shared memory for W_ih and the bias beside R.
void check(const Input& input, const std::string& kind, const Plan& plan, const Launch& launch) {
  if (input.I == 0) return;
  require_below(kInputs + 1, "I", input.I);
  if (launch.exchange == Exchange::grid) throw std::invalid_argument("exchange: no grid takes an input");
  const int64_t size = kind == "bfloat16" || kind == "float16" ? 2 : 4;
  const int64_t chunks = plan.shared_chunks + (input.I * size + kChunkBytes - 1) / kChunkBytes;
  require_at_least(plan.fragments + launch.warps * 32 * (chunks * kChunkBytes + 16), "shared_bytes",
                   launch.shared_bytes);
}

void forward(const std::string& cell, const std::string& kind, const py::tuple& shape, const py::tuple& plan,
             int device, uintptr_t stream, const py::tuple& problem, const py::tuple& arrays, uintptr_t words,
             const py::tuple& input) {
  const ForwardParams p = forward_params(problem, arrays);
  const Input given = input_of(input);
  const Launch launch = launch_of(shape, device, stream);
  const Plan spread = plan_of(plan, launch);
  const Cell found = find_cell(cell);
  check(p, found.sizes, given);
  check(p, spread, launch, words);
  check(given, kind, spread, launch);
  recurrence_fwd(p, given, spread, reinterpret_cast<uint64_t*>(words), find_kernel(found, kind, false, launch),
                 launch);
}

void backward(const std::string& cell, const std::string& kind, const py::tuple& shape, const py::tuple& plan,
              int device, uintptr_t stream, const py::tuple& problem, const py::tuple& arrays, uintptr_t words,
              uintptr_t weight_t) {
  const BackwardParams p = backward_params(problem, arrays);
  const Launch launch = launch_of(shape, device, stream);
  const Plan spread = plan_of(plan, launch);
  const Cell found = find_cell(cell);
  const auto* transposed = reinterpret_cast<const void*>(weight_t);
  check(p, found.sizes);
  check(p, spread, launch, words);
  require_address("weight_t", transposed);
  recurrence_bwd(p, spread, reinterpret_cast<uint64_t*>(words), transposed, find_kernel(found, kind, true, launch),
                 launch);
}

// (step, operand, product, carry)
Step step_of(const py::tuple& values, bool backward) {
  Fields fields("step", values, 4);
  const Step step{fields.number(), fields.pointer(), fields.pointer<const float>(), fields.pointer<float>()};
  require_at_least(-1, "step", step.step);
  require_address("operand", step.operand);
  require_address("product", step.product);
  if (backward) require_address("carry", step.carry);
  return step;
}

template <class Params>
const void* checked_step_kernel(const Params& p, const std::string& cell, const std::string& kind, bool backward,
                                int device) {
  const Cell found = find_cell(cell);
  check(p, found.sizes);
  // A grid of threads has fewer than 2^31 programs of 256.
  require_below(int64_t(1) << 38, "K * N * B * D", p.K * p.N * p.rows.B * p.D);
  require_at_least(0, "device", device);
  const void* kernel = step_kernel(found.index, kind, backward);
  if (!kernel) throw std::invalid_argument("kind: there is no kernel for '" + kind + "'");
  return kernel;
}

void step_forward(const std::string& cell, const std::string& kind, int device, uintptr_t stream,
                  const py::tuple& problem, const py::tuple& arrays, const py::tuple& step) {
  const ForwardParams p = forward_params(problem, arrays);
  const Step given = step_of(step, false);
  step_fwd(p, given, checked_step_kernel(p, cell, kind, false, device), device, reinterpret_cast<void*>(stream));
}

void step_backward(const std::string& cell, const std::string& kind, int device, uintptr_t stream,
                   const py::tuple& problem, const py::tuple& arrays, const py::tuple& step) {
  const BackwardParams p = backward_params(problem, arrays);
  const Step given = step_of(step, true);
  step_bwd(p, given, checked_step_kernel(p, cell, kind, true, device), device, reinterpret_cast<void*>(stream));
}

int resident_programs(const std::string& cell, const std::string& kind, bool backward, const py::tuple& shape,
                      const py::tuple& plan, int device) {
  const Launch launch = launch_of(shape, device, 0);
  return resident(find_kernel(find_cell(cell), kind, backward, launch), plan_of(plan, launch), launch);
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
  module.def("forward", &forward, ARGUMENTS, py::arg("input"),
             "Launch one recurrence: the fields of Problem, then the others of ForwardParams, in csrc/params.h; the "
             "zeros through which the programs of a grid exchange what they compute; and the fields of Input.");
  module.def("backward", &backward, ARGUMENTS, py::arg("weight_t"),
             "Launch its gradients: the fields of Problem, then the others of BackwardParams, and R as (K, N, D_in, "
             "D_out, G).");
#undef ARGUMENTS
#define ARGUMENTS \
  py::arg("cell"), py::arg("kind"), py::arg("device"), py::arg("stream"), py::arg("problem"), py::arg("arrays"), \
      py::arg("step")
  module.def("step_forward", &step_forward, ARGUMENTS,
             "Launch one step without its product: as forward, and the fields of Step in csrc/cuda/step.h.");
  module.def("step_backward", &step_backward, ARGUMENTS, "Launch the gradients of one step but for its product.");
#undef ARGUMENTS
  module.def("resident", &resident_programs, py::arg("cell"), py::arg("kind"), py::arg("backward"), py::arg("shape"),
             py::arg("plan"), py::arg("device"),
             "How many programs (clusters, groups of them) of a plan the device runs at once; 0 if not even one.");
  module.attr("archs") = XLSTM_FUSED_ARCHS;
  module.def("cells", &cells, "The cells that there are kernels for.");
}
