// What the CUDA kernel tests share: device arrays, random inputs, comparison, counting. One line a
// case.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/dtype.h"

namespace nibble::cuda::test {

#define NIBBLE_CUDA_OK(expression)                                                                 \
  do {                                                                                             \
    const cudaError_t error_ = (expression);                                                       \
    if (error_ != cudaSuccess) {                                                                   \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #expression, cudaGetErrorString(error_)); \
      std::exit(1);                                                                                \
    }                                                                                              \
  } while (0)

// Owned device array. Fresh memory is poisoned with NaN patterns (0xff).
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::size_t size) : size_(size) {
    NIBBLE_CUDA_OK(cudaMalloc(&data_, std::max<std::size_t>(size * sizeof(T), 16)));
    NIBBLE_CUDA_OK(cudaMemset(data_, 0xff, size * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) {
    NIBBLE_CUDA_OK(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  DeviceArray(DeviceArray&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
  }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceArray() { cudaFree(data_); }

  T* get() const { return data_; }
  std::size_t size() const { return size_; }
  std::vector<T> Host() const {
    std::vector<T> host(size_);
    NIBBLE_CUDA_OK(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

inline float Decode(std::uint16_t bits, DType dtype) {
  return dtype == DType::kF16 ? F16ToF32(bits) : Bf16ToF32(bits);
}
inline std::uint16_t Encode(float v, DType dtype) {
  return dtype == DType::kF16 ? F32ToF16(v) : F32ToBf16(v);
}
// One element of 8 bits, kF8E4M3 or kI8.
inline float DecodeByte(std::uint8_t bits, DType dtype) {
  if (dtype == DType::kI8) return static_cast<std::int8_t>(bits);
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(fraction), -9)
                              : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  return bits & 0x80 ? -magnitude : magnitude;
}
inline std::vector<float> DecodeAll(const std::vector<std::uint16_t>& bits, DType dtype) {
  std::vector<float> values(bits.size());
  for (std::size_t i = 0; i < bits.size(); ++i) values[i] = Decode(bits[i], dtype);
  return values;
}
// Normal values rounded to the type, as its bits.
inline std::vector<std::uint16_t> RandomHalves(std::size_t size, DType dtype, std::mt19937& rng,
                                               float sigma = 1.0f) {
  std::normal_distribution<float> normal(0.0f, sigma);
  std::vector<std::uint16_t> bits(size);
  for (auto& b : bits) b = Encode(normal(rng), dtype);
  return bits;
}
inline std::vector<float> RandomFloats(std::size_t size, std::mt19937& rng, float sigma = 1.0f) {
  std::normal_distribution<float> normal(0.0f, sigma);
  std::vector<float> values(size);
  for (auto& v : values) v = normal(rng);
  return values;
}

// Runs body(i) for i < count on every core.
template <typename Body>
void ParallelFor(std::int64_t count, const Body& body) {
  const int threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back([&, i] {
      for (std::int64_t j = i; j < count; j += threads) body(j);
    });
  }
  for (auto& thread : pool) thread.join();
}

struct Counter {
  int run = 0, failed = 0;

  // ||out - expected|| / ||expected|| <= limit; what is not finite fails.
  void Near(const std::string& name, const std::vector<float>& out,
            const std::vector<float>& expected, double limit) {
    double difference = 0, norm = 0, square = 0;
    for (float v : expected) square += double{v} * v;
    const double rms = expected.empty() ? 0 : std::sqrt(square / expected.size());
    std::int64_t bad = -1;  // the first that is far off
    for (std::size_t i = 0; i < expected.size(); ++i) {
      if (!(std::abs(out[i] - expected[i]) <=
            30 * limit * rms + 30 * limit * std::abs(expected[i])) &&
          bad < 0)
        bad = static_cast<std::int64_t>(i);
      difference += (double{out[i]} - expected[i]) * (double{out[i]} - expected[i]);
      norm += double{expected[i]} * expected[i];
    }
    const double error = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
    const bool ok = out.size() == expected.size() && error <= limit;
    Report(name, ok,
           "error " + std::to_string(error) + " limit " + std::to_string(limit) +
               (bad >= 0 && !ok
                    ? " first at " + std::to_string(bad) + ": " + std::to_string(out[bad]) +
                          " for " + std::to_string(expected[bad])
                    : ""));
  }
  void True(const std::string& name, bool ok, const std::string& detail = "") {
    Report(name, ok, detail);
  }

 private:
  void Report(const std::string& name, bool ok, const std::string& detail) {
    ++run;
    failed += !ok;
    std::printf("%s %s %s\n", ok ? "ok  " : "FAIL", name.c_str(), detail.c_str());
    std::fflush(stdout);
  }
};

// One a file of tests.
void TestDequantize(Counter& counter);
void TestProducts(Counter& counter);
void TestTiles(Counter& counter);
void TestMoe(Counter& counter);
void TestRow8(Counter& counter);
void TestElementwise(Counter& counter);
void TestAttention(Counter& counter);
void TestSampling(Counter& counter);

}  // namespace nibble::cuda::test
