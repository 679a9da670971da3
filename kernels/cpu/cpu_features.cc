#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "kernels/cpu/kernel_table.h"

namespace nibble::cpu {

#ifdef __x86_64__
namespace {

// Two features that clang 16's __builtin_cpu_supports does not know. Both need what AVX2 needs of
// the system.
bool HasF16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1) != 0;
}

bool HasAvxVnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

}  // namespace

bool Supported(Isa isa) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
  switch (isa) {
    case Isa::kBaseline: return true;
    case Isa::kAvx2: return avx2;
    case Isa::kAvxVnni: return avx2 && HasAvxVnni();
    case Isa::kAvx512Vnni:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
  }
  return false;
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
#else
bool Supported(Isa isa) { return isa == Isa::kBaseline; }

const KernelTable& KernelsOf(Isa) { return kBaselineKernels; }
#endif

Isa BestIsa() {
  Isa best = Isa::kBaseline;
  for (Isa isa : kAllIsas) {
    if (Supported(isa)) best = isa;
  }
  return best;
}

}  // namespace nibble::cpu
