#include <mutex>
#include <vector>

#include "kernels/cuda/device.h"

namespace nibble::cuda {
namespace {

#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1000 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "compute capability 9.0 wants its own instructions: name the architecture 90a"
#endif

// Compiled as all other kernels are: what is asked about it holds for them.
__global__ void ProbeKernel() {}

cudaError_t Inspect(int device, DeviceTraits* traits) {
  cudaFuncAttributes code;
  cudaError_t error = cudaFuncGetAttributes(&code, ProbeKernel);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&traits->sms, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&traits->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                   device);
  }
  traits->arch = code.ptxVersion;
  return error;
}

}  // namespace

cudaError_t CurrentDevice(DeviceTraits* traits) {
  static std::mutex mutex;
  static std::vector<DeviceTraits> known;  // by device; arch 0: not asked yet
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard lock(mutex);
  if (known.size() <= static_cast<std::size_t>(device)) known.resize(device + 1);
  if (known[device].arch == 0) {
    DeviceTraits found;
    error = Inspect(device, &found);
    if (error != cudaSuccess) return error;
    known[device] = found;
  }
  *traits = known[device];
  return cudaSuccess;
}

}  // namespace nibble::cuda
