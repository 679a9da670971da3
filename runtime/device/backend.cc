#include "runtime/device/backend.h"

#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/device/cpu_backend.h"
#include "runtime/device/fault_backend.h"
#ifdef NIBBLE_HAVE_CUDA
#include "runtime/device/cuda_backend.h"
#endif

namespace nibble {
namespace {

absl::StatusOr<std::unique_ptr<Backend>> OpenCpu(const BackendOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<CpuBackend> backend,
                   CpuBackend::Create(options.threads, options.compute));
  return std::unique_ptr<Backend>(std::move(backend));
}

#ifdef NIBBLE_HAVE_CUDA
constexpr bool kHaveCuda = true;
absl::StatusOr<std::unique_ptr<Backend>> OpenCuda(int device, const BackendOptions& options) {
  return OpenCudaBackend(device, options);
}
#else
constexpr bool kHaveCuda = false;
absl::StatusOr<std::unique_ptr<Backend>> OpenCuda(int, const BackendOptions&) {
  return absl::UnimplementedError(
      "this build has no CUDA backend; use --device cpu, or build with -DNIBBLE_CUDA=ON");
}
#endif

absl::StatusOr<std::unique_ptr<Backend>> Open(const BackendOptions& options) {
  const absl::string_view device = options.device;
  if (device == "cpu") return OpenCpu(options);
  if (device == "auto") {
    if (kHaveCuda) {
      absl::StatusOr<std::unique_ptr<Backend>> cuda = OpenCuda(0, options);
      if (cuda.ok()) return cuda;
      LogInfo("no GPU is used", {{"reason", std::string(cuda.status().message())}});
    }
    return OpenCpu(options);
  }
  if (device == "cuda") return OpenCuda(0, options);
  int index = 0;
  if (absl::StartsWith(device, "cuda:") && absl::SimpleAtoi(device.substr(5), &index) &&
      index >= 0) {
    return OpenCuda(index, options);
  }
  return absl::NotFoundError(
      absl::StrCat("no device is called '", device, "'; there are: auto, cpu, cuda, cuda:N"));
}

}  // namespace

absl::StatusOr<std::int64_t> Backend::ExpandedBytes(std::span<const LinearSpec>) const {
  return absl::UnimplementedError(
      absl::StrCat(info().name, " multiplies packed weights and keeps no expanded copy"));
}

absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const BackendOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, Open(options));
  return WithFaultFromEnvironment(std::move(backend));
}

}  // namespace nibble
