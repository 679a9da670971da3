#include "runtime/device/cuda_backend.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda_raii.h"
#include "runtime/device/cuda_runner.h"

namespace nibble {
namespace {

absl::StatusOr<DType> DTypeOf(const BackendOptions& options) {
  switch (options.compute) {
    case Compute::kAuto: return options.model_dtype == DType::kBF16 ? DType::kBF16 : DType::kF16;
    case Compute::kF16: return DType::kF16;
    case Compute::kBF16: return DType::kBF16;
    case Compute::kF32:
    case Compute::kFp8:
    case Compute::kInt8: break;
  }
  return absl::UnimplementedError(
      "the cuda backend computes in 16 bits: --compute is auto, f16 or bf16 there");
}

absl::StatusOr<int> Attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  RETURN_IF_ERROR(CudaError(cudaDeviceGetAttribute(&value, attribute, device),
                            absl::StrCat("asking cuda:", device, " what it is")));
  return value;
}

// Of an SM a clock, 16 bits, dense.
double FlopsAClock(const cudaDeviceProp& properties) {
  switch (properties.major) {
    case 8: return properties.minor == 0 ? 2048 : 1024;  // the A100's SM, the others'
    case 9: return 4096;
    case 10: return 8192;
    default: return 1024;
  }
}

// The device is the current one.
absl::StatusOr<DeviceInfo> Inspect(int device) {
  cudaDeviceProp properties;
  RETURN_IF_ERROR(CudaError(cudaGetDeviceProperties(&properties, device),
                            absl::StrCat("asking cuda:", device, " what it is")));
  cuda::DeviceTraits traits;
  const cudaError_t error = cuda::CurrentDevice(&traits);
  if (properties.major < 8 || error == cudaErrorNoKernelImageForDevice ||
      error == cudaErrorUnsupportedPtxVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuda:", device, " is an ", properties.name, " of compute capability ",
                     properties.major, ".", properties.minor, "; ",
                     properties.major < 8 ? "the cuda backend needs 8.0 (A100) or more"
                                          : "this build has no kernels that it or its driver runs",
                     "; use --device cpu"));
  }
  RETURN_IF_ERROR(CudaError(error, absl::StrCat("asking cuda:", device, " what it runs")));
  ASSIGN_OR_RETURN(const int memory_khz, Attribute(cudaDevAttrMemoryClockRate, device));
  ASSIGN_OR_RETURN(const int bus_bits, Attribute(cudaDevAttrGlobalMemoryBusWidth, device));
  ASSIGN_OR_RETURN(const int clock_khz, Attribute(cudaDevAttrClockRate, device));
  DeviceInfo info;
  info.name = absl::StrCat("cuda:", device);
  info.description = absl::StrCat(properties.name, ", ", properties.multiProcessorCount, " SMs");
  info.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  info.memory_bandwidth = 2.0 * memory_khz * 1e3 * bus_bits / 8;  // both edges of the clock
  info.flops = FlopsAClock(properties) * properties.multiProcessorCount * clock_khz * 1e3;
  return info;
}

}  // namespace

CudaBackend::CudaBackend(DeviceInfo info, int device, DType dtype)
    : info_(std::move(info)), context_(std::make_shared<CudaContext>()) {
  context_->device = device;
  context_->dtype = dtype;
}

std::string CudaBackend::ComputeName() const {
  return context_->dtype == DType::kF16 ? "f16" : "bf16";
}

absl::StatusOr<std::int64_t> CudaBackend::PackedBytes(std::span<const LinearSpec> specs,
                                                      PackAxis axis) const {
  return CudaLinear::PackedBytes(specs, axis);
}

absl::StatusOr<std::unique_ptr<PackedLinear>> CudaBackend::Pack(
    std::span<const LinearWeight> weights, PackAxis axis) {
  ASSIGN_OR_RETURN(std::unique_ptr<CudaLinear> linear, CudaLinear::Pack(*context_, weights, axis));
  return std::unique_ptr<PackedLinear>(std::move(linear));
}

absl::StatusOr<std::int64_t> CudaBackend::ExpandedBytes(std::span<const LinearSpec> specs) const {
  return CudaLinear::ExpandedBytes(specs);
}

absl::Status CudaBackend::CheckKv(const KvLayout& kv) const {
  if (kv.dtype != context_->dtype && kv.dtype != DType::kF8E4M3 && kv.dtype != DType::kI8) {
    return absl::UnimplementedError(absl::StrCat(
        "the cuda backend keeps keys and values as F8_E4M3, I8 or the type it computes in, ",
        NameOf(context_->dtype), ", not ", NameOf(kv.dtype), "; change --kv-dtype or --compute"));
  }
  if (kv.page_tokens != 64) {
    return absl::UnimplementedError(
        absl::StrCat("the cuda backend keeps 64 tokens a page of KV, not ", kv.page_tokens));
  }
  if (kv.head_dim % 8 != 0 || kv.head_dim > 256) {
    return absl::UnimplementedError(
        absl::StrCat("the cuda backend attends with heads of a multiple of 8, at most 256; the "
                     "model's have ",
                     kv.head_dim));
  }
  if (kv.Scaled() && kv.head_dim % 16 != 0) {
    return absl::UnimplementedError(absl::StrCat(
        "the cuda backend keeps keys and values in 8 bits for heads of a multiple of 16; the "
        "model's have ",
        kv.head_dim, ": change --kv-dtype"));
  }
  return absl::OkStatus();
}

std::int64_t CudaBackend::WorkspaceBytes(const Program& program, const StepLimits& limits) const {
  return CudaRunner::WorkspaceBytes(context_->dtype, program, limits);
}

std::int64_t CudaBackend::GraphsBytes(const Program& program, const StepLimits& limits) const {
  return CudaRunner::GraphsBytes(program, limits);
}

absl::StatusOr<std::unique_ptr<Runner>> CudaBackend::Compile(const Program& program,
                                                             ModelWeights weights,
                                                             const KvLayout& kv,
                                                             const StepLimits& limits,
                                                             const CompileOptions& options) {
  RETURN_IF_ERROR(CheckKv(kv));
  context_->lanes.Release();  // weights are there: what they came through makes room
  ASSIGN_OR_RETURN(std::unique_ptr<CudaRunner> runner,
                   CudaRunner::Create(context_, program, std::move(weights), kv, limits, options));
  return std::unique_ptr<Runner>(std::move(runner));
}

absl::StatusOr<std::unique_ptr<Backend>> OpenCudaBackend(int device,
                                                         const BackendOptions& options) {
  ASSIGN_OR_RETURN(const DType dtype, DTypeOf(options));
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return absl::FailedPreconditionError(
        absl::StrCat("CUDA finds no device: ", cudaGetErrorString(error),
                     "; use --device cpu, or see whether nvidia-smi works here"));
  }
  if (device >= count) {
    return absl::NotFoundError(
        absl::StrCat("there is no cuda:", device, ": this machine has ", count, " CUDA devices"));
  }
  RETURN_IF_ERROR(CudaError(cudaSetDevice(device), absl::StrCat("opening cuda:", device)));
  RETURN_IF_ERROR(CudaError(cudaFree(nullptr), absl::StrCat("opening cuda:", device)));
  ASSIGN_OR_RETURN(DeviceInfo info, Inspect(device));
  return std::unique_ptr<Backend>(std::make_unique<CudaBackend>(std::move(info), device, dtype));
}

}  // namespace nibble
