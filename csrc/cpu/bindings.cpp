// The module xlstm_fused._cpu. Arrays come as addresses, 0 for none; xlstm_fused/backends/cpu.py has checked them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/recurrence.h"
#include "fields.h"

namespace py = pybind11;
using namespace xlstm_fused;
using namespace xlstm_fused::cpu;

namespace {

// (threads, team, tiles), or None for the plan that is best for at most `threads` threads.
using PlanArgument = std::optional<std::tuple<int64_t, int64_t, int64_t>>;

Plan choose_plan(const Shape& shape, int threads, const PlanArgument& forced) {
  if (!forced) return make_plan(shape, std::min<int64_t>(threads, kMaxThreads));
  const auto [all, team, tiles] = *forced;
  if (shape.B > 0 && !is_valid(shape, {all, team, tiles})) {
    throw std::invalid_argument("plan: impossible for these sizes");
  }
  return {all, team, tiles};
}

// Whether a signal's handler, run here and now, raised: KeyboardInterrupt, say. The error is then set.
bool signal_raised() {
  const PyGILState_STATE state = PyGILState_Ensure();
  const bool raised = PyErr_CheckSignals() != 0;
  PyGILState_Release(state);
  return raised;
}

// Whom a call asks whether to stop: nobody if it is short, or on another thread than Python's main one, which alone
// runs handlers of signals.
bool (*asked_by(const Shape& shape, const Plan& plan))() {
  if (!is_long(shape, plan)) return nullptr;
  const auto threading = py::module_::import("threading");
  return threading.attr("get_ident")().equal(threading.attr("main_thread")().attr("ident")) ? signal_raised : nullptr;
}

// Takes the interpreter's lock back. Where the interpreter is going away, Python ends the thread instead, by unwinding
// its stack: this thread stays here until the process ends, since unwinding would end that too, in a destructor.
void lock_again(PyThreadState* state) {
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

// Does work() without the interpreter's lock.
template <class Work>
void without_lock(Work work) {
  bool no_memory = false;
  PyThreadState* const state = PyEval_SaveThread();
  try {
    work();
  } catch (const std::bad_alloc&) {
    no_memory = true;
  }
  lock_again(state);
  if (!no_memory) return;
  PyErr_SetString(PyExc_MemoryError, "the cpu backend found no memory for its copies of the weights and its buffers");
  throw py::error_already_set();
}

template <class Params>
void run(bool (*pass)(const Params&, const Kernel&, const Plan&, bool (*)(), double*), const Params& p,
         const Kernel& kernel, const Shape& shape, int threads, const PlanArgument& forced, uintptr_t seconds) {
  const Plan plan = choose_plan(shape, threads, forced);
  bool (*const asked)() = asked_by(shape, plan);
  bool stopped = false;
  without_lock([&] { stopped = pass(p, kernel, plan, asked, reinterpret_cast<double*>(seconds)); });
  if (stopped) throw py::error_already_set();
}

void forward(const std::string& cell, const std::string& dtype, const std::string& isa, int threads,
             const PlanArgument& forced, const py::tuple& problem, const py::tuple& arrays, const py::tuple& input,
             uintptr_t seconds) {
  const Kernel& kernel = find_kernel(isa, cell, dtype);
  const LayerParams p{forward_params(problem, arrays), input_of(input)};
  check(p, {kernel.gates, kernel.states}, p.input);
  require_at_least(1, "threads", threads);
  if (p.input.I > 0 && !kernel.pack_input && !takes_tiled_input(kernel, p.rows.T, p.D, p.input.I)) {
    throw std::invalid_argument("input: expected none for these sizes and " + dtype);
  }
  run(recurrence_fwd, p, kernel, shape_of(p, kernel, p.input.I), threads, forced, seconds);
}

void backward(const std::string& cell, const std::string& dtype, const std::string& isa, int threads,
              const PlanArgument& forced, const py::tuple& problem, const py::tuple& arrays, uintptr_t seconds) {
  const Kernel& kernel = find_kernel(isa, cell, dtype);
  const BackwardParams p = backward_params(problem, arrays);
  check(p, {kernel.gates, kernel.states});
  require_at_least(1, "threads", threads);
  run(recurrence_bwd, p, kernel, shape_of(p, kernel), threads, forced, seconds);
}

// (address, stride, along_sum) of a factor with so many numbers along the sum and across it.
Factor factor_of(const char* name, const py::tuple& values, int64_t along, int64_t across) {
  Fields fields(name, values, 3);
  const Factor factor{fields.pointer<const float>(), fields.number(), fields.number() != 0};
  require_address(name, factor.numbers);
  require_at_least(factor.along_sum ? along : across, name, factor.stride);
  require_addressable(name, {factor.stride, factor.along_sum ? across : along, int64_t(sizeof(float))});
  return factor;
}

bool product(const std::string& isa, int threads, const std::tuple<int64_t, int64_t, int64_t>& sizes,
             const py::tuple& a, const py::tuple& b, uintptr_t c) {
  const MultiplyMatrices multiply = find_product(isa);
  const auto [M, N, K] = sizes;
  for (const int64_t size : {M, N, K}) require_at_least(1, "sizes", size);
  require_at_least(1, "threads", threads);
  require_addressable("c", {M, N, int64_t(sizeof(float))});
  const MatrixProduct given{M, N, K, factor_of("a", a, K, M), factor_of("b", b, K, N), reinterpret_cast<float*>(c)};
  require_address("c", given.c);
  if (!multiply) return false;
  bool done = false;
  without_lock([&] { done = matrix_product(given, multiply, std::min<int64_t>(threads, kMaxThreads)); });
  return done;
}

bool takes_input(const std::string& dtype, const std::string& isa, int64_t T, int64_t D, int64_t inputs) {
  const Kernel& kernel = find_kernel(isa, "lstm", dtype);
  return inputs > 0 && (kernel.pack_input || takes_tiled_input(kernel, T, D, inputs));
}

py::list phases() {
  py::list names;
  for (const char* name : kPhaseNames) names.append(name);
  return names;
}

py::list cells() {
  py::list names;
#define XLSTM_FUSED_NAME(cell, Cell) names.append(#cell);
  XLSTM_FUSED_CELLS(XLSTM_FUSED_NAME)
#undef XLSTM_FUSED_NAME
  return names;
}

py::list runnable_isas() {
  py::list names;
  for (const Isa& isa : isas()) {
    if (isa.refusal.empty()) names.append(isa.name);
  }
  return names;
}

py::dict missing_isas() {
  py::dict reasons;
  for (const Isa& isa : isas()) {
    if (!isa.refusal.empty()) reasons[isa.name] = isa.refusal;
  }
  return reasons;
}

py::dict plan(const std::string& cell, const std::string& dtype, const std::string& isa, int threads, int64_t heads,
              int64_t B, int64_t T, int64_t D) {
  const Kernel& kernel = find_kernel(isa, cell, dtype);
  if (heads < 1 || B < 1 || T < 0 || D < 1 || threads < 1) {
    throw std::invalid_argument("plan: expected positive sizes");
  }
  require_addressable("plan", {kernel.gates, heads, D, D, kernel.element_size});
  require_addressable("plan", {kernel.gates, heads, D, kernel.element_size, B});
  const Plan plan = make_plan({heads, B, T, D, kernel.gates, kernel.lanes, kernel.element_size},
                              std::min<int64_t>(threads, kMaxThreads));
  py::dict result;
  result["threads"] = plan.threads;
  result["team"] = plan.team;
  result["tiles"] = plan.tiles;
  result["lanes"] = kernel.lanes;
  return result;
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "Fused recurrences on the CPU. Arrays are passed as addresses, 0 for none.";
#define ARGUMENTS \
  py::arg("cell"), py::arg("dtype"), py::arg("isa"), py::arg("threads"), py::arg("plan"), py::arg("problem"), \
      py::arg("arrays")
  module.def("forward", &forward, ARGUMENTS, py::arg("input"), py::arg("seconds") = 0,
             "One recurrence: the fields of Problem, then the others of ForwardParams, in csrc/params.h; and those of "
             "Input, all 0 where there is wx. To float64 numbers at `seconds`, if that is not 0, it adds what its phases "
             "take, summed over threads.");
  module.def("backward", &backward, ARGUMENTS, py::arg("seconds") = 0,
             "The gradients of one recurrence: the fields of Problem, then the others of BackwardParams; `seconds` as "
             "in forward.");
#undef ARGUMENTS
  module.def("product", &product, py::arg("isa"), py::arg("threads"), py::arg("sizes"), py::arg("a"), py::arg("b"),
             py::arg("c"),
             "c (M, N) = a b of float32 for sizes (M, N, K), factors as (address, stride, whether numbers lie side by "
             "side along K). False where torch's product is the better one; c is then not to be used.");
  module.def("takes_input", &takes_input, py::arg("dtype"), py::arg("isa"), py::arg("T"), py::arg("D"),
             py::arg("inputs"),
             "Whether forward takes an input of so many features, for T steps of heads of D units.");
  module.def("phases", &phases, "The names of what `seconds` has a number for each of.");
  module.def("cells", &cells, "The cells that there are kernels for.");
  module.def("isas", &runnable_isas, "The instruction sets whose kernels run here, the best first.");
  module.def("missing_isas", &missing_isas, "The other instruction sets -> why their kernels do not run here.");
  module.def("plan", &plan, py::kw_only(), py::arg("cell"), py::arg("dtype"), py::arg("isa"), py::arg("threads"),
             py::arg("heads"), py::arg("B"), py::arg("T"), py::arg("D"),
             "How a recurrence is split: threads used, threads per team, tiles of the batch, lanes of a vector.");
}
