#include "runtime/device/cpu_backend.h"

#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/device/cpu_linear.h"
#include "runtime/device/cpu_measure.h"
#include "runtime/device/cpu_runner.h"

namespace nibble {
namespace {

constexpr int kMaxThreads = 1024;

// "AMD EPYC 9B45", from /proc/cpuinfo; "x86-64" where it does not say.
std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const auto colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "x86-64";
}

}  // namespace

CpuBackend::CpuBackend(int threads, Compute compute, cpu::Isa isa)
    : pool_(threads),
      context_{&pool_, &cpu::KernelsOf(isa),
               compute == Compute::kInt8   ? InputRounding::kInt8
               : compute == Compute::kAuto ? InputRounding::kInt16
                                           : InputRounding::kNone} {
  info_.name = "cpu";
  info_.description = absl::StrCat(
      CpuName(), ", ", threads, threads == 1 ? " thread, " : " threads, ", context_.kernels->name);
  info_.memory_bytes = cpu::MemoryLimit();
}

absl::StatusOr<std::unique_ptr<CpuBackend>> CpuBackend::Create(int threads, Compute compute,
                                                               cpu::Isa isa) {
  if (threads < 0 || threads > kMaxThreads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "threads is ", threads, "; give 0 (what the container allows) to ", kMaxThreads));
  }
  if (!cpu::Supported(isa)) {
    return absl::FailedPreconditionError(
        absl::StrCat("this machine does not run ", cpu::KernelsOf(isa).name, " kernels"));
  }
  if (threads == 0) threads = cpu::AvailableCpus();
  return std::unique_ptr<CpuBackend>(new CpuBackend(threads, compute, isa));
}

const DeviceInfo& CpuBackend::info() const {
  std::call_once(measured_, [this] {
    info_.memory_bandwidth = MeasureBandwidth(context_);
    info_.flops = MeasureFlops(context_);
  });
  return info_;
}

std::string CpuBackend::ComputeName() const {
  switch (context_.rounding) {
    case InputRounding::kNone: return "f32";
    case InputRounding::kInt8: return "int8 in blocks of 32; 16-bit weights in 12 bits";
    case InputRounding::kInt16: return "int16 in blocks of 32 or 64; 16-bit weights in 12 bits";
  }
  return "f32";
}

DType CpuBackend::DefaultKvDType(Compute compute) const {
  return compute == Compute::kF32 ? DType::kF32 : DType::kF16;
}

absl::Status CpuBackend::CheckKv(const KvLayout& kv) const {
  if (kv.dtype == DType::kF32 || kv.dtype == DType::kF16 || kv.dtype == DType::kBF16)
    return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("the cpu backend keeps keys and values as F32, F16 or BF16, not ",
                   NameOf(kv.dtype), "; change --kv-dtype"));
}

absl::StatusOr<std::int64_t> CpuBackend::PackedBytes(std::span<const LinearSpec> specs,
                                                     PackAxis axis) const {
  return CpuLinear::PackedBytes(specs, axis, context_.dense_form());
}

absl::StatusOr<std::unique_ptr<PackedLinear>> CpuBackend::Pack(
    std::span<const LinearWeight> weights, PackAxis axis) {
  ASSIGN_OR_RETURN(std::unique_ptr<CpuLinear> linear,
                   CpuLinear::Pack(weights, axis, context_.dense_form()));
  return std::unique_ptr<PackedLinear>(std::move(linear));
}

std::int64_t CpuBackend::WorkspaceBytes(const Program& program, const StepLimits& limits) const {
  return CpuRunner::WorkspaceBytes(context_, program, limits);
}

absl::StatusOr<std::unique_ptr<Runner>> CpuBackend::Compile(const Program& program,
                                                            ModelWeights weights,
                                                            const KvLayout& kv,
                                                            const StepLimits& limits,
                                                            const CompileOptions&) {
  RETURN_IF_ERROR(CheckKv(kv));
  ASSIGN_OR_RETURN(std::unique_ptr<CpuRunner> runner,
                   CpuRunner::Create(context_, program, std::move(weights), kv, limits));
  return std::unique_ptr<Runner>(std::move(runner));
}

}  // namespace nibble
