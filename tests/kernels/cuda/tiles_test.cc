// Tile products of every encoding, and every way to cut them, against plain loops over the exact
// weights.
#include "kernels/cuda/product.cuh"
#include "tests/kernels/cuda/packed.h"

namespace nibble::cuda::test {
namespace {

std::string Name(const TilePlan& plan) {
  return " tokens=" + std::to_string(plan.tokens) + " splits=" + std::to_string(plan.splits) +
         (plan.shared ? " shared" : "");
}

constexpr std::int64_t kPartials = 20 << 20;  // floats

// One product into f32, a poisoned output, partial sums in poisoned memory.
void TestPlan(Counter& counter, const std::string& name, const TestMatrix& w, DType dtype, int m,
              const DeviceArray<std::uint16_t>& x, const std::vector<float>& expected,
              const TilePlan& plan) {
  const int n = static_cast<int>(w.packed.shape.n);
  DeviceArray<float> out(m * n), partials(kPartials);
  const DeviceArray<std::uint32_t> flags(std::vector<std::uint32_t>(kProductFlags, 0));
  const TileWorkspace workspace{partials.get(), 4 * kPartials, flags.get()};
  ProductArgs args;
  args.w = w.packed;
  args.dtype = dtype;
  args.x = x.get();
  args.ldx = w.packed.shape.k;
  args.m = m;
  args.output = Output::kStoreF32;
  args.out = out.get();
  args.ldo = n;
  args.dependent = false;
  const cudaError_t error = TiledProduct(args, plan, workspace, nullptr);
  if (error != cudaSuccess) {
    counter.True(name + Name(plan), false, cudaGetErrorString(error));
    return;
  }
  NIBBLE_CUDA_OK(cudaDeviceSynchronize());
  counter.Near(name + Name(plan), out.Host(), expected, dtype == DType::kF16 ? 6e-4 : 4e-3);
  for (std::uint32_t flag : flags.Host()) {
    if (flag != 0) counter.True(name + Name(plan) + " leaves its flags zero", false);
  }
}

void TestEncoding(Counter& counter, const Encoding& e, std::mt19937& rng) {
  struct Size {
    int n, k;
    std::vector<int> tokens;
  };
  // Around tiles of 256 rows, units of 128 columns, tiles of 32, 64 and 128 tokens; rows that no
  // 16-byte access fits.
  const Size sizes[] = {
      {40, 136, {1, 33}}, {1003, 264, {50}}, {576, 1536, {17, 65, 129}}, {1040, 4096, {64, 300}}};
  for (const Size& size : sizes) {
    const PackedShape shape{size.n, size.k, e.kind, e.bits, e.group, e.offset};
    const TestMatrix w = RandomMatrix(shape, e.file_group, false, rng);
    for (DType dtype : {DType::kF16, DType::kBF16}) {
      for (int m : size.tokens) {
        const std::vector<std::uint16_t> x = RandomHalves(m * size.k, dtype, rng);
        const DeviceArray<std::uint16_t> d_x(x);
        const std::vector<float> expected =
            Reference(DecodeAll(x, dtype), w.values, m, size.n, size.k);
        const std::string name = Name(e, dtype, size.n, size.k, m);
        const int splits = size.k > 1000 ? 3 : 1;
        for (const TilePlan& plan :
             {TilePlan{16, 1, true}, TilePlan{32, 1, true}, TilePlan{64, splits, false},
              TilePlan{64, splits, true}, TilePlan{128, 1, false}, TilePlan{128, splits, true},
              TilePlan{16, splits, m <= 128}}) {
          TestPlan(counter, name, w, dtype, m, d_x, expected, plan);
        }
      }
    }
  }
}

// Enough items that every block walks over several, with rows of activations wider than k.
void TestManyItems(Counter& counter, std::mt19937& rng) {
  const int n = 8208, k = 512, m = 1000;
  const PackedShape shape{n, k, CodeKind::kInteger, 4, 128, OffsetMode::kConstant};
  const TestMatrix w = RandomMatrix(shape, 128, false, rng);
  const std::vector<std::uint16_t> x = RandomHalves(m * k, DType::kF16, rng);
  const DeviceArray<std::uint16_t> d_x(x);
  const std::vector<float> expected = Reference(DecodeAll(x, DType::kF16), w.values, m, n, k);
  for (const TilePlan& plan : {TilePlan{16, 1, true}, TilePlan{32, 1, false}, TilePlan{64, 1, true},
                               TilePlan{128, 2, false}, TilePlan{128, 1, true}}) {
    TestPlan(counter, "many items", w, DType::kF16, m, d_x, expected, plan);
  }
}

}  // namespace

void TestTiles(Counter& counter) {
  std::mt19937 rng(2);
  TestManyItems(counter, rng);
  for (const Encoding& encoding : kEncodings) TestEncoding(counter, encoding, rng);
}

}  // namespace nibble::cuda::test
