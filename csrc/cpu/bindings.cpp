// The Python module _cpu: raw addresses in, one call of a kernel out. Shapes are checked in xlstm_fused/backends/cpu.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace py = pybind11;

namespace xlstm_fused {
namespace portable {
extern const KernelTable table;
}
#if XLSTM_FUSED_HAVE_AVX2
namespace avx2 {
extern const KernelTable table;
}
#endif
#if XLSTM_FUSED_HAVE_AVX512
namespace avx512 {
extern const KernelTable table;
}
#endif
namespace {

// Instruction sets that are compiled in and that this processor has, best first.
std::vector<std::pair<std::string, const KernelTable*>> runnable() {
  std::vector<std::pair<std::string, const KernelTable*>> sets;
#if XLSTM_FUSED_HAVE_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    sets.emplace_back("avx512", &avx512::table);
#endif
#if XLSTM_FUSED_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    sets.emplace_back("avx2", &avx2::table);
#endif
  sets.emplace_back("portable", &portable::table);
  return sets;
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const auto& set : runnable()) names.push_back(set.first);
  return names;
}

const Kernel& find(const std::string& isa, const std::string& cell, const std::string& dtype) {
  static const std::map<std::string, int> cells = {{"lstm", kLstm}, {"slstm", kSlstm}};
  static const std::map<std::string, int> dtypes = {
      {"float32", kFloat32}, {"float64", kFloat64}, {"bfloat16", kBfloat16}, {"float16", kFloat16}};
  if (!cells.count(cell)) throw std::invalid_argument("cell: not known to the CPU kernels: " + cell);
  if (!dtypes.count(dtype)) throw std::invalid_argument("dtype: not known to the CPU kernels: " + dtype);
  for (const auto& set : runnable())
    if (isa.empty() || set.first == isa) return set.second->kernels[cells.at(cell)][dtypes.at(dtype)];
  throw std::invalid_argument("isa: this processor or build does not have " + isa);
}

// Jobs for `threads` threads: every head and direction by itself, and, where those are too few, parts of the batch.
std::vector<Job> make_jobs(const Params& p, int threads) {
  const int64_t heads = p.K * p.N, wanted = std::max<int64_t>(1, (threads + heads - 1) / heads);
  const int64_t parts = std::min(wanted, std::max<int64_t>(1, p.rows.B));
  std::vector<Job> jobs;
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t k = 0; k < p.K; ++k)
      for (int64_t n = 0; n < p.N; ++n)
        jobs.push_back({k, n, p.rows.B * part / parts, p.rows.B * (part + 1) / parts});
  return jobs;
}

void run(const Params& p, const Kernel& kernel, size_t element, bool backward, int threads) {
  const int64_t B = p.rows.B;
  if (B == 0 || p.D == 0) return;
  std::vector<int64_t> length(B), order(B);
  for (int64_t b = 0; b < B; ++b)
    length[b] = p.rows.length ? std::clamp<int64_t>(p.rows.length[b], 0, p.rows.T) : p.rows.T;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length[a] > length[b]; });

  const std::vector<Job> jobs = make_jobs(p, threads);
  std::vector<int64_t> offset;
  int64_t total = p.K * p.N * kernel.packed_size(p.D, backward);
  for (const Job& job : jobs) {
    total = (total + 15) / 16 * 16;
    offset.push_back(total);
    total += kernel.scratch_size(p.D, job.end - job.begin, backward);
  }
  const std::align_val_t line{64};
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  const std::unique_ptr<char, Free> memory(static_cast<char*>(::operator new(total * element, line)));
  const int64_t heads = p.K * p.N, count = static_cast<int64_t>(jobs.size());
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t head = 0; head < heads; ++head) kernel.pack(p, head / p.N, head % p.N, backward, memory.get());
#pragma omp for schedule(dynamic, 1)
    for (int64_t j = 0; j < count; ++j) {
      const Context context{order.data(), length.data(), memory.get(), memory.get() + offset[j] * element};
      (backward ? kernel.backward : kernel.forward)(p, context, jobs[j]);
    }
  }
}

template <class T>
T* pointer(const py::dict& arguments, const char* name) {
  return reinterpret_cast<T*>(arguments[name].cast<uintptr_t>());
}

// `a` maps the fields of Params (without rows.) to ints, addresses among them; those that a pass does not use are absent.
void call(const std::string& isa, const std::string& cell, const std::string& dtype, bool backward, int threads,
          const py::dict& a) {
  const Kernel& kernel = find(isa, cell, dtype);
  const auto size = [&](const char* name) {
    const int64_t value = a[name].cast<int64_t>();
    if (value < 0) throw std::invalid_argument(std::string(name) + ": expected a size, got a negative number");
    return value;
  };
  if (threads < 1) throw std::invalid_argument("threads: expected at least 1");
  Params p{};
  p.rows = {size("T"), size("B"), size("P"), size("time_stride"), size("batch_stride"),
            pointer<const int64_t>(a, "time_offset"), pointer<const int64_t>(a, "batch_offset"),
            pointer<const int64_t>(a, "length")};
  p.K = size("K");
  p.N = size("N");
  p.D = size("D");
  p.reverse = a["reverse"].cast<bool>();
  p.reset_per_row = a["reset_per_row"].cast<bool>();
  p.reset = pointer<const uint8_t>(a, "reset");
#define INPUT(name) p.name = pointer<const void>(a, #name)
#define OUTPUT(name) p.name = pointer<void>(a, #name)
  INPUT(weight_hh), INPUT(h0), INPUT(s0), INPUT(reset_h), INPUT(reset_s), INPUT(h_mask);
  OUTPUT(output), OUTPUT(pre), OUTPUT(states);
  if (backward) {
    INPUT(d_output), INPUT(d_h_n), INPUT(d_s_n), INPUT(d_pre), INPUT(d_states);
    OUTPUT(dpre), OUTPUT(dh0), OUTPUT(ds0), OUTPUT(dreset_h), OUTPUT(dreset_s);
  } else {
    INPUT(wx), OUTPUT(h_n), OUTPUT(s_n);
  }
#undef INPUT
#undef OUTPUT
  const size_t element = dtype == "float64" ? sizeof(double) : sizeof(float);
  py::gil_scoped_release unlocked;
  run(p, kernel, element, backward, threads);
}

}  // namespace
}  // namespace xlstm_fused

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "The fused CPU kernels, on raw addresses; use xlstm_fused.backends.cpu.";
  m.def("isas", &xlstm_fused::isas, "Instruction sets compiled in and supported by this processor, best first.");
  m.def("call", &xlstm_fused::call, py::arg("isa"), py::arg("cell"), py::arg("dtype"), py::arg("backward"),
        py::arg("threads"), py::arg("arguments"));
}
