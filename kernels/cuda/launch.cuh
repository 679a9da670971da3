// Launching with or without programmatic dependent launch, which devices below 9.0 do not have.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {

// Every kernel calls ptx::LaunchDependents first and ptx::WaitForPrerequisites before it touches
// what earlier kernels wrote or read, so that it may be launched dependent.
template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                   LaunchOptions options, Arguments&&... arguments) {
  DeviceTraits traits;
  if (const cudaError_t error = CurrentDevice(&traits); error != cudaSuccess) return error;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = options.stream;
  config.attrs = &attribute;
  config.numAttrs = options.dependent && traits.launches_dependent() ? 1 : 0;
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

// Calls body<half>() or body<__nv_bfloat16>(); other types are an invalid argument.
template <typename Body>
cudaError_t ByDType(DType dtype, const Body& body) {
  if (dtype == DType::kF16) return body.template operator()<half>();
  if (dtype == DType::kBF16) return body.template operator()<__nv_bfloat16>();
  return cudaErrorInvalidValue;
}

// Sum over a block of kThreads; every thread gets it. `scratch` f32[32] in shared memory.
template <int kThreads>
__device__ __forceinline__ float BlockSum(float v, float* scratch) {
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) v += __shfl_xor_sync(~0u, v, delta);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = threadIdx.x % 32 < kThreads / 32 ? scratch[threadIdx.x % 32] : 0.0f;
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) v += __shfl_xor_sync(~0u, v, delta);
  __syncthreads();
  return v;
}

// v * sigmoid(x), in approximate instructions: both ends of the range come out right.
__device__ __forceinline__ float TimesSigmoid(float v, float x) {
  return __fdividef(v, 1.0f + ptx::Exp2(-1.4426950409f * x));
}
__device__ __forceinline__ float GateOf(Gate gate, float v) {
  if (gate == Gate::kSilu) return TimesSigmoid(v, v);
  return TimesSigmoid(v, 1.5957691216f * (v + 0.044715f * v * v * v));  // gelu, tanh form
}

}  // namespace nibble::cuda
