#include "cpu/dispatch.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace xlstm_fused::cpu {
namespace {

#if defined(__x86_64__)
// Whether the operating system lets this process use the tile registers, which it does not unasked.
bool has_leave_for_tiles() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// Empty, or what the processor or the operating system lacks.
std::string lacks(Feature feature) {
  if (feature == kAny) return "";
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;
  __get_cpuid(1, &a, &b, &c, &d);
  // Compilers differ in whether __builtin_cpu_supports knows f16c.
  const bool f16c = c & bit_F16C;
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c)) {
    return "this processor or its operating system lacks avx2, fma or f16c";
  }
  if (feature >= kAvx512 && !(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))) {
    return "this processor or its operating system lacks avx512f, bw, dq or vl";
  }
  if (feature >= kAvx512Bf16) {
    // Compilers differ in whether they know it by name.
    constexpr unsigned kBf16 = 1u << 5;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & kBf16)) return "this processor lacks avx512_bf16";
  }
  if (feature == kAmx) {
    constexpr unsigned kTilesAndBf16 = 1u << 24 | 1u << 22;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTilesAndBf16) != kTilesAndBf16) {
      return "this processor lacks amx_tile or amx_bf16";
    }
    if (!has_leave_for_tiles()) return "the operating system gives no leave to use amx";
  }
  return "";
#else
  return "this processor is not an x86-64";
#endif
}

[[maybe_unused]] Isa missing(const char* name) { return {name, "this build has no code for it", nullptr}; }

Isa present(const char* name, const KernelTable& table) { return {name, lacks(table.needs), &table}; }

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = {
#if defined(XLSTM_FUSED_HAVE_AVX512AMX)
      present("avx512amx", avx512amx::kernels),
#else
      missing("avx512amx"),
#endif
#if defined(XLSTM_FUSED_HAVE_AVX512BF16)
      present("avx512bf16", avx512bf16::kernels),
#else
      missing("avx512bf16"),
#endif
#if defined(XLSTM_FUSED_HAVE_AVX512)
      present("avx512", avx512::kernels),
#else
      missing("avx512"),
#endif
#if defined(XLSTM_FUSED_HAVE_AVX2)
      present("avx2", avx2::kernels),
#else
      missing("avx2"),
#endif
      present("portable", portable::kernels),
  };
  return all;
}

namespace {

// Throw std::invalid_argument for unknown names.
int cell_index(const std::string& name) {
  int index = 0;
#define XLSTM_FUSED_MATCH(cell, Cell) \
  if (name == #cell) return index;    \
  ++index;
  XLSTM_FUSED_CELLS(XLSTM_FUSED_MATCH)
#undef XLSTM_FUSED_MATCH
  throw std::invalid_argument("cell: unknown name \"" + name + "\"");
}

int dtype_index(const std::string& name) {
  constexpr const char* names[kDtypes] = {"float32", "float64", "bfloat16", "float16"};
  for (int index = 0; index < kDtypes; ++index) {
    if (name == names[index]) return index;
  }
  throw std::invalid_argument("dtype: unknown name \"" + name + "\"");
}

// Those that run here, from the ISA of that name on; all of them for "".
std::vector<const KernelTable*> tables_from(const std::string& name) {
  std::vector<const KernelTable*> tables;
  bool found = name.empty();
  for (const Isa& isa : isas()) {
    if (name == isa.name && !isa.refusal.empty()) throw std::invalid_argument("isa \"" + name + "\": " + isa.refusal);
    found = found || name == isa.name;
    if (found && isa.refusal.empty()) tables.push_back(isa.table);
  }
  if (!found) {
    throw std::invalid_argument("isa: expected \"\" or the name of an instruction set, got \"" + name + "\"");
  }
  return tables;
}

}  // namespace

const Kernel& find_kernel(const std::string& isa, const std::string& cell, const std::string& dtype) {
  const int row = cell_index(cell), column = dtype_index(dtype);
  for (const KernelTable* table : tables_from(isa)) {
    const Kernel& kernel = table->kernels[row][column];
    if (kernel.forward) return kernel;
  }
  throw std::logic_error("the portable table has every kernel");
}

MultiplyMatrices find_product(const std::string& isa) { return tables_from(isa).front()->multiply_matrices; }

}  // namespace xlstm_fused::cpu
