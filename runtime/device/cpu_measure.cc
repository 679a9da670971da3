#include "runtime/device/cpu_measure.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "runtime/device/cpu_linear.h"
#include "runtime/device/host_memory.h"

namespace nibble {
namespace {

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// Int4 in groups of 32 with some codes and scales.
LinearWeight SomeWeight(std::int64_t n, std::int64_t k) {
  Affine affine;
  affine.group = 32;
  affine.codes = HostBuffer(static_cast<std::size_t>(n * k / 2));
  std::uint8_t code = 0;
  for (auto& c : affine.codes.As<std::uint8_t>()) c = code += 37;
  FlatScales scales{DType::kF32, HostBuffer(static_cast<std::size_t>(n * k / 32 * 4))};
  for (float& s : scales.data.As<float>()) s = 0.01f;
  affine.scales = std::move(scales);
  return {n, k, std::move(affine), {}};
}

}  // namespace

double MeasureBandwidth(const CpuContext& context) {
  constexpr std::int64_t kBytes = std::int64_t{64} << 20;  // beyond common caches
  constexpr std::int64_t kPart = std::int64_t{1} << 20;
  const absl::StatusOr<HostMemory> memory = HostMemory::Allocate(kBytes);
  if (!memory.ok()) return 0.0;
  auto* words = memory->At<std::uint64_t>(0);
  const std::int64_t step = HostMemory::kPageBytes / 8;
  for (std::int64_t i = 0; i < kBytes / 8; i += step)
    words[i] = 1;  // real pages, not the shared zero page
  std::atomic<std::uint64_t> total{0};
  double best = 0.0;
  for (int round = 0; round < 3; ++round) {
    const auto start = std::chrono::steady_clock::now();
    context.pool->For(kBytes / kPart, 1, [&](std::int64_t begin, std::int64_t end, int) {
      const std::uint64_t* p = words + begin * kPart / 8;
      std::uint64_t sums[8] = {};
      for (std::int64_t i = 0; i < (end - begin) * kPart / 8; i += 8) {
        __builtin_prefetch(p + i + 1024);
        for (int lane = 0; lane < 8; ++lane) sums[lane] += p[i + lane];
      }
      std::uint64_t sum = 0;
      for (const std::uint64_t s : sums) sum += s;
      total.fetch_add(sum, std::memory_order_relaxed);
    });
    const double seconds = Seconds(start);
    if (total.load() > 0 && seconds > 0)
      best = std::max(best, static_cast<double>(kBytes) / seconds);
  }
  return best;
}

double MeasureFlops(const CpuContext& context) {
  constexpr std::int64_t kN = 512, kK = 512, kRows = 48;
  const LinearWeight weight = SomeWeight(kN, kK);
  const auto linear = CpuLinear::Pack({&weight, 1}, PackAxis::kN);
  MemoryLayout layout;
  CpuProducts products(context, {kRows * kK, kK}, layout);
  const std::int64_t x_at = layout.Take(kRows * kK * 4), y_at = layout.Take(kRows * kN * 4);
  const absl::StatusOr<HostMemory> memory = HostMemory::Allocate(layout.total());
  if (!linear.ok() || !memory.ok()) return 0.0;
  products.Bind(*memory);
  auto* x = memory->At<float>(x_at);
  for (std::int64_t i = 0; i < kRows * kK; ++i) x[i] = static_cast<float>(i % 17) - 8.0f;
  const ProductJob job{&(*linear)->segments()[0], x, kK, kRows, memory->At<float>(y_at), kN};
  double best = 0.0;
  for (int round = 0; round < 4; ++round) {
    const auto start = std::chrono::steady_clock::now();
    products.Run({&job, 1});
    const double seconds = Seconds(start);
    if (seconds > 0) best = std::max(best, 2.0 * kN * kK * kRows / seconds);
  }
  return best;
}

}  // namespace nibble
