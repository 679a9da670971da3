#define NIBBLE_KERNEL_TABLE kAvx2Kernels
#define NIBBLE_KERNEL_NAME "AVX2"
#include "kernels/cpu/kernels.inc"
