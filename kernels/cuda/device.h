// What launchers may ask of the current device.
#pragma once

#include <cuda_runtime_api.h>

namespace nibble::cuda {

struct DeviceTraits {
  // Of the machine code that this build runs there, 10 * major + minor: the device's own compute
  // capability, or a lower one that it compiles from.
  int arch = 0;
  int sms = 0;
  int shared_bytes = 0;  // most of a block

  // Programmatic dependent launch, and clusters of blocks.
  bool launches_dependent() const { return arch >= 90; }
  bool has_clusters() const { return arch >= 90; }
  // Warpgroup products and tensor copies: what the wgmma and row8 kernels are made of.
  bool has_warpgroups() const { return arch / 10 == 9; }
};

// cudaErrorNoKernelImageForDevice: this build has no code for it. Cheap after the first call.
cudaError_t CurrentDevice(DeviceTraits* traits);

}  // namespace nibble::cuda
