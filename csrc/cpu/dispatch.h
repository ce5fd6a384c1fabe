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

// The kernels of an ISA, of the best one for "". Throws std::invalid_argument if it is unknown or cannot run here.
const KernelTable& kernel_table(const std::string& isa);

// Throw std::invalid_argument for unknown names.
int cell_index(const std::string& name);
int dtype_index(const std::string& name);

}  // namespace xlstm_fused::cpu
