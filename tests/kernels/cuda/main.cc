// Compares every CUDA kernel with a plain host reference, on the device. Prints one line a case and
// a count; exits 0 when all pass, 77 when there is no device that can run them.
//
//   cuda_tests [elementwise|attention|sampling|dequantize|products|tiles|moe|row8 ...]
#include <cstring>

#include "kernels/cuda/device.h"
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
  if (properties.major < 8) {
    std::printf("skipped: %s has compute capability %d.%d, these kernels need 8.0\n",
                properties.name, properties.major, properties.minor);
    return 77;
  }
  nibble::cuda::DeviceTraits traits;
  NIBBLE_CUDA_OK(nibble::cuda::CurrentDevice(&traits));
  std::printf("%s, code for %d.%d, %d KB of shared memory a block\n", properties.name,
              traits.arch / 10, traits.arch % 10, traits.shared_bytes / 1024);
  const struct {
    const char* name;
    void (*run)(Counter&);
    bool warpgroups = false;  // of kernels that only devices with warpgroup products have
  } kSuites[] = {{"elementwise", TestElementwise},
                 {"attention", TestAttention},
                 {"sampling", TestSampling},
                 {"dequantize", TestDequantize},
                 {"products", TestProducts},
                 {"tiles", TestTiles, true},
                 {"moe", TestMoe},
                 {"row8", TestRow8, true}};
  Counter counter;
  for (const auto& suite : kSuites) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted |= std::strcmp(argv[i], suite.name) == 0;
    if (wanted && suite.warpgroups && !traits.has_warpgroups()) {
      std::printf("skipped: %s, of kernels for 9.0 alone\n", suite.name);
    } else if (wanted) {
      suite.run(counter);
    }
  }
  std::printf("%s: %d cases, %d failed\n", properties.name, counter.run, counter.failed);
  return counter.failed == 0 && counter.run > 0 ? 0 : 1;
}
