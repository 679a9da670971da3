#include "runtime/device/cpu_backend.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/device/cpu_linear.h"
#include "runtime/device/cpu_runner.h"
#include "runtime/device/host_memory.h"

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

// Bytes a second that all threads together read from memory, or 0 when there is none to try with.
double MeasureBandwidth(cpu::ThreadPool& pool) {
  constexpr std::int64_t kBytes = std::int64_t{96} << 20;  // beyond common caches
  constexpr std::int64_t kPart = std::int64_t{1} << 20;
  const absl::StatusOr<HostMemory> memory = HostMemory::Allocate(kBytes);
  if (!memory.ok()) return 0.0;
  auto* words = memory->At<std::uint64_t>(0);
  const std::int64_t step = HostMemory::kPageBytes / 8;
  for (std::int64_t i = 0; i < kBytes / 8; i += step)
    words[i] = 1;  // each page is real, not the shared zero page
  std::atomic<std::uint64_t> total{0};
  const auto start = std::chrono::steady_clock::now();
  pool.For(kBytes / kPart, 1, [&](std::int64_t begin, std::int64_t end, int) {
    const std::uint64_t* p = words + begin * kPart / 8;
    std::uint64_t sums[8] = {};
    for (std::int64_t i = 0; i < (end - begin) * kPart / 8; i += 8) {
      for (int lane = 0; lane < 8; ++lane) sums[lane] += p[i + lane];
    }
    std::uint64_t sum = 0;
    for (const std::uint64_t s : sums) sum += s;
    total.fetch_add(sum, std::memory_order_relaxed);
  });
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return total.load() > 0 && seconds > 0 ? static_cast<double>(kBytes) / seconds : 0.0;
}

}  // namespace

CpuBackend::CpuBackend(int threads, Compute compute, cpu::Isa isa)
    : pool_(threads),
      context_{&pool_, &cpu::KernelsOf(isa),
               compute == Compute::kAuto || compute == Compute::kInt8} {
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
  std::call_once(measured_, [this] { info_.memory_bandwidth = MeasureBandwidth(pool_); });
  return info_;
}

DType CpuBackend::DefaultKvDType(Compute compute) const {
  return compute == Compute::kF32 ? DType::kF32 : DType::kF16;
}

absl::StatusOr<std::int64_t> CpuBackend::PackedBytes(std::span<const LinearSpec> specs,
                                                     PackAxis axis) const {
  return CpuLinear::PackedBytes(specs, axis);
}

absl::StatusOr<std::unique_ptr<PackedLinear>> CpuBackend::Pack(
    std::span<const LinearWeight> weights, PackAxis axis) {
  ASSIGN_OR_RETURN(std::unique_ptr<CpuLinear> linear, CpuLinear::Pack(weights, axis));
  return std::unique_ptr<PackedLinear>(std::move(linear));
}

std::int64_t CpuBackend::WorkspaceBytes(const Program& program, const StepLimits& limits) const {
  return CpuRunner::WorkspaceBytes(context_, program, limits);
}

absl::StatusOr<std::unique_ptr<Runner>> CpuBackend::Compile(const Program& program,
                                                            ModelWeights weights,
                                                            const KvLayout& kv,
                                                            const StepLimits& limits) {
  if (kv.dtype != DType::kF32 && kv.dtype != DType::kF16 && kv.dtype != DType::kBF16) {
    return absl::UnimplementedError(
        absl::StrCat("the cpu backend keeps keys and values as F32, F16 or BF16, not ",
                     NameOf(kv.dtype), "; change --kv-dtype"));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<CpuRunner> runner,
                   CpuRunner::Create(context_, program, std::move(weights), kv, limits));
  return std::unique_ptr<Runner>(std::move(runner));
}

}  // namespace nibble
