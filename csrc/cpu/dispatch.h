// Which ISA's kernels run here.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace xlstm_fused::cpu {

struct Isa {
  const char* name;
  std::string refusal;  // why it cannot run here; empty if it can
  const KernelTable* table;
};

// All ISAs, the best first.
const std::vector<Isa>& isas();

// The kernel of an ISA, of the best one for "", or of the next one that has its own. Throws std::invalid_argument for
// unknown names, and for an ISA that cannot run here.
const Kernel& find_kernel(const std::string& isa, const std::string& cell, const std::string& dtype);

// The product of matrices of an ISA, or of the best one for "", if it has one; else nullptr. Throws as find_kernel.
MultiplyMatrices find_product(const std::string& isa);

}  // namespace xlstm_fused::cpu
