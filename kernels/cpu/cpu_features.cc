#include "kernels/cpu/kernel_table.h"

namespace nibble::cpu {

bool Supported(Isa isa) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  switch (isa) {
    case Isa::kBaseline: return true;
    case Isa::kAvx2: return avx2;
    case Isa::kAvxVnni: return avx2 && __builtin_cpu_supports("avxvnni");
    case Isa::kAvx512Vnni:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
  }
  return false;
}

Isa BestIsa() {
  Isa best = Isa::kBaseline;
  for (Isa isa : kAllIsas) {
    if (Supported(isa)) best = isa;
  }
  return best;
}

const KernelTable& KernelsOf(Isa isa) {
  switch (isa) {
    case Isa::kBaseline: return kBaselineKernels;
    case Isa::kAvx2: return kAvx2Kernels;
    case Isa::kAvxVnni: return kAvxVnniKernels;
    case Isa::kAvx512Vnni: return kAvx512VnniKernels;
  }
  return kBaselineKernels;
}

}  // namespace nibble::cpu
