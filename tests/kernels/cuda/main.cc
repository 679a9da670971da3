// Compares every CUDA kernel with a plain host reference, on the device. Prints one line a case and
// a count; exits 0 when all pass, 77 when there is no device that can run them.
//
//   cuda_tests [elementwise|attention|sampling|dequantize|products|tiles|moe|row8 ...]
#include <cstring>

#include "tests/kernels/cuda/check.h"

int main(int argc, char** argv) {
  using namespace nibble::cuda::test;
  cudaDeviceProp properties;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  NIBBLE_CUDA_OK(cudaGetDeviceProperties(&properties, 0));
  if (properties.major < 9) {
    std::printf("skipped: %s has compute capability %d.%d, these kernels need 9.0\n",
                properties.name, properties.major, properties.minor);
    return 77;
  }
  const struct {
    const char* name;
    void (*run)(Counter&);
  } kSuites[] = {{"elementwise", TestElementwise},
                 {"attention", TestAttention},
                 {"sampling", TestSampling},
                 {"dequantize", TestDequantize},
                 {"products", TestProducts},
                 {"tiles", TestTiles},
                 {"moe", TestMoe},
                 {"row8", TestRow8}};
  Counter counter;
  for (const auto& suite : kSuites) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted |= std::strcmp(argv[i], suite.name) == 0;
    if (wanted) suite.run(counter);
  }
  std::printf("%s: %d cases, %d failed\n", properties.name, counter.run, counter.failed);
  return counter.failed == 0 && counter.run > 0 ? 0 : 1;
}
