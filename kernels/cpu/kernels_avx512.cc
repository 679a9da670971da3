#define NIBBLE_KERNEL_TABLE kAvx512VnniKernels
#define NIBBLE_KERNEL_NAME "AVX-512 VNNI"
#include "kernels/cpu/kernels.inc"
