#define NIBBLE_KERNEL_TABLE kAvxVnniKernels
#define NIBBLE_KERNEL_NAME "AVX-VNNI"
#include "kernels/cpu/kernels.inc"
