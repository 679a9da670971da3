#define NIBBLE_KERNEL_TABLE kBaselineKernels
#define NIBBLE_KERNEL_NAME "baseline"
#include "kernels/cpu/kernels.inc"
