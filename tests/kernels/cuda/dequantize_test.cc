// Operand A of the tile products, made on the host by the very functions the kernel calls, against
// the weights that packed_layout.h says lie there. Needs no device.
#include "kernels/cuda/dequantize.cuh"

#include <cstring>

#include "tests/kernels/cuda/check.h"

namespace nibble::cuda::test {
namespace {

template <typename T, CodeKind kKind, int kBits>
void TestAtoms(Counter& counter, const char* name, OffsetMode mode, float down) {
  using Codes = CodesOf<T, kKind, kBits>;
  constexpr DType kType = std::is_same_v<T, half> ? DType::kF16 : DType::kBF16;
  std::mt19937 rng(kBits);
  std::vector<std::uint8_t> codes(16 * 64);
  for (auto& q : codes) q = rng() % (1 << kBits);
  std::vector<std::uint8_t> atom(Codes::kAtomBytes);
  std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
  float scales[16], offsets[16], table[16];
  for (int row = 0; row < 16; ++row) {
    scales[row] = F16ToF32(F32ToF16(uniform(rng) * 0.01f));
    offsets[row] = mode == OffsetMode::kBias ? F16ToF32(F32ToF16(-uniform(rng) * 0.1f))
                   : row % 3 == 0            ? rng() % (1 << kBits) + 0.25f
                                             : static_cast<float>(rng() % (1 << kBits));
    table[row] = Decode(Encode(uniform(rng) - 1.0f, kType), kType);
  }
  const float zero = 1 << (kBits - 1);
  double difference = 0, norm = 0;
  int wrong_lane = -1;
  for (int lane = 0; lane < 32; ++lane) {
    PackLane(
        lane, kBits, kKind, [&](int row, int column) { return codes[row * 64 + column]; },
        [&](int byte, std::uint32_t value) { std::memcpy(atom.data() + byte, &value, 4); });
  }
  for (int lane = 0; lane < 32; ++lane) {
    Codes mine;  // as Load and LoadShared place them
    const auto word = [&](int byte) {
      std::uint32_t v;
      std::memcpy(&v, atom.data() + byte, 4);
      return v;
    };
    if constexpr (Codes::kTable) {
      for (int i = 0; i < 4; ++i) mine.low[i] = word(lane * 16 + i * 4);
    } else {
      for (int i = 0; i < Codes::kLow; ++i) mine.low[i] = word(PlaneWordByte(Codes::kLow, lane, i));
      for (int i = 0; i < Codes::kHigh; ++i) {
        mine.high[i] = word(128 * Codes::kLow + PlaneWordByte(Codes::kHigh, lane, i));
      }
    }
    Dequantizer<T, Codes> numbers;
    const OffsetRule rule = RuleOf<T>(mode, zero, down);
    const int g = lane / 4;
    const auto pack = [](float low, float high) {
      return F32ToF16(low) | static_cast<std::uint32_t>(F32ToF16(high)) << 16;
    };
    numbers.Set(pack(scales[g], scales[g + 8]),
                mode == OffsetMode::kConstant ? 0 : pack(offsets[g], offsets[g + 8]), rule);
    for (int step = 0; step < 4; ++step) {
      for (int pair = 0; pair < 4; ++pair) {
        std::uint32_t entries = 0;
        float expected[2];
        for (int half = 0; half < 2; ++half) {
          const AtomCoordinate at = AtomCoordinateOf(lane, step, pair, half);
          const int q = codes[at.row * 64 + at.column];
          entries |= static_cast<std::uint32_t>(Encode(table[q & 15], kType)) << (16 * half);
          expected[half] =
              Codes::kTable ? scales[at.row] * table[q & 15]
              : mode == OffsetMode::kBias
                  ? scales[at.row] * (q - zero) + offsets[at.row]
                  : scales[at.row] * (q - (mode == OffsetMode::kZeros ? offsets[at.row] : zero));
        }
        const std::uint32_t a = numbers.Weights(mine, step, pair, entries);
        for (int half = 0; half < 2; ++half) {
          const float v = Decode(static_cast<std::uint16_t>(a >> (16 * half)), kType) / down;
          const double d = v - expected[half];
          if (std::abs(d) > 0.02 * (1 << kBits) * 0.02 && wrong_lane < 0) wrong_lane = lane;
          difference += d * d, norm += double{expected[half]} * expected[half];
        }
      }
    }
  }
  const double error = std::sqrt(difference / norm);
  counter.True(
      std::string("operand A ") + name + (kType == DType::kF16 ? " f16" : " bf16") +
          " bits=" + std::to_string(kBits),
      error < (kType == DType::kF16 ? 6e-4 : 4e-3) && wrong_lane < 0,
      "error " + std::to_string(error) + " first wrong lane " + std::to_string(wrong_lane));
}

template <typename T>
void TestType(Counter& counter) {
  const auto widths = [&]<int kBits>() {
    TestAtoms<T, CodeKind::kInteger, kBits>(counter, "constant", OffsetMode::kConstant, 1.0f);
    TestAtoms<T, CodeKind::kInteger, kBits>(counter, "zeros", OffsetMode::kZeros, 1.0f);
    TestAtoms<T, CodeKind::kInteger, kBits>(counter, "bias", OffsetMode::kBias, 0.25f);
  };
  widths.template operator()<2>();
  widths.template operator()<3>();
  widths.template operator()<4>();
  widths.template operator()<5>();
  widths.template operator()<6>();
  widths.template operator()<8>();
  TestAtoms<T, CodeKind::kCodebook, 4>(counter, "codebook", OffsetMode::kConstant, 0.5f);
}

}  // namespace

void TestDequantize(Counter& counter) {
  TestType<half>(counter);
  TestType<__nv_bfloat16>(counter);
}

}  // namespace nibble::cuda::test
