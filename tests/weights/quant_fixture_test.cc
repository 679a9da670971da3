// Slices of published checkpoints, and the bf16 values to which the library that made them decodes
// them. Every fixture that is there is found by listing the folder; its layout is u32 fields, then
// payloads in order.
#include <algorithm>
#include <functional>
#include <map>

#include "gmock/gmock.h"
#include "runtime/base/file.h"
#include "runtime/weights/format.h"
#include "runtime/weights/gguf_blocks.h"
#include "tests/support/conformance.h"
#include "tests/weights/files.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

class Fixture {
 public:
  static absl::StatusOr<Fixture> Read(const fs::path& path) {
    auto text = ReadTextFile(path.string(), 1 << 24);
    if (!text.ok()) return text.status();
    return Fixture(*std::move(text));
  }

  std::uint32_t Number() { return Take<std::uint32_t>(); }
  float Float() { return Take<float>(); }
  std::string Bytes(std::size_t count) {
    EXPECT_LE(at_ + count, bytes_.size());
    std::string out = bytes_.substr(at_, count);
    at_ += count;
    return out;
  }
  bool AtEnd() const { return at_ == bytes_.size(); }

 private:
  explicit Fixture(std::string bytes) : bytes_(std::move(bytes)) {}
  template <typename T>
  T Take() {
    T value{};
    std::memcpy(&value, bytes_.data() + at_, sizeof(value));
    at_ += sizeof(value);
    return value;
  }

  std::string bytes_;
  std::size_t at_ = 0;
};

const char* NameOfScale(std::uint32_t id) { return id == 0 ? "F32" : id == 1 ? "BF16" : "F16"; }

// Elements of `weight` [n, k], rounded to bf16, that differ from `expected` at index(row, column).
std::int64_t Differences(const LinearWeight& weight, const std::string& expected,
                         const std::function<std::int64_t(std::int64_t, std::int64_t)>& index) {
  const auto decoded = Dequantize(weight);
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  if (!decoded.ok()) return -1;
  EXPECT_EQ(expected.size(), decoded->size() * 2);
  std::int64_t different = 0;
  for (std::int64_t row = 0; row < weight.n; ++row) {
    for (std::int64_t column = 0; column < weight.k; ++column) {
      std::uint16_t want = 0;
      std::memcpy(&want, expected.data() + 2 * index(row, column), 2);
      different += F32ToBf16((*decoded)[static_cast<std::size_t>(row * weight.k + column)]) != want;
    }
  }
  return different;
}

std::vector<fs::path> FixturesIn(const fs::path& folder) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".bin") out.push_back(entry.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

// Loads layer "layer" of a directory with these tensors and this config.json.
absl::StatusOr<LinearWeight> LoadLayer(const std::vector<TestTensor>& tensors,
                                       const std::string& config) {
  const TempDir dir;
  dir.Write("config.json", config);
  dir.Write("model.safetensors", Safetensors(tensors));
  auto checkpoint = Checkpoint::Open(dir.path().string());
  if (!checkpoint.ok()) return checkpoint.status();
  auto format = OpenFormat(**checkpoint);
  if (!format.ok()) return format.status();
  const auto spec = (*format)->Describe("layer");
  if (!spec.ok()) return spec.status();
  auto weight = (*format)->Load("layer");
  EXPECT_TRUE(!weight.ok() || SpecOf(*weight) == *spec);
  return weight;
}

TEST(QuantFixtureTest, Gguf) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  for (const fs::path& path : FixturesIn(dir / "quant" / "gguf_reference")) {
    SCOPED_TRACE(path.string());
    NIBBLE_ASSERT_OK_AND_ASSIGN(Fixture fixture, Fixture::Read(path));
    const auto type = static_cast<int>(fixture.Number());
    const std::int64_t count = fixture.Number();
    const std::uint32_t raw_bytes = fixture.Number();
    const std::uint32_t expected_bytes = fixture.Number();
    const std::string raw = fixture.Bytes(raw_bytes);
    const std::string expected = fixture.Bytes(expected_bytes);
    EXPECT_TRUE(fixture.AtEnd());
    if (absl::IsUnimplemented(GgmlSpec(type, 1, 256).status())) {
      GTEST_LOG_(INFO) << "type " << type << " is not served";
      continue;
    }
    HostBuffer data(raw.size());
    std::memcpy(data.data(), raw.data(), raw.size());
    NIBBLE_ASSERT_OK_AND_ASSIGN(const LinearWeight weight,
                                DecodeGgml(type, count / 256, 256, std::move(data)));
    EXPECT_EQ(
        Differences(weight, expected, [](auto row, auto column) { return row * 256 + column; }), 0);
  }
}

// u32 bits, group, in, out, scale dtype, has g_idx, five lengths.
TEST(QuantFixtureTest, Gptq) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  for (const fs::path& path : FixturesIn(dir / "quant" / "gptq_reference")) {
    SCOPED_TRACE(path.string());
    NIBBLE_ASSERT_OK_AND_ASSIGN(Fixture fixture, Fixture::Read(path));
    const std::int64_t bits = fixture.Number();
    const std::int64_t group = fixture.Number();
    const std::int64_t k = fixture.Number();
    const std::int64_t n = fixture.Number();
    const std::uint32_t scale_type = fixture.Number();
    fixture.Number();  // has g_idx
    std::uint32_t sizes[5];
    for (std::uint32_t& size : sizes) size = fixture.Number();
    std::vector<TestTensor> tensors = {
        {"layer.qweight", "I32", {k * bits / 32, n}, fixture.Bytes(sizes[0])},
        {"layer.scales", NameOfScale(scale_type), {k / group, n}, fixture.Bytes(sizes[1])},
        {"layer.qzeros", "I32", {k / group, n * bits / 32}, fixture.Bytes(sizes[2])}};
    const std::string g_idx = fixture.Bytes(sizes[3]);
    if (!g_idx.empty()) tensors.push_back({"layer.g_idx", "I32", {k}, g_idx});
    const std::string expected = fixture.Bytes(sizes[4]);
    EXPECT_TRUE(fixture.AtEnd());
    NIBBLE_ASSERT_OK_AND_ASSIGN(
        const LinearWeight weight,
        LoadLayer(tensors, absl::StrCat(R"({"quantization_config":{"quant_method":"gptq","bits":)",
                                        bits, R"(,"group_size":)", group, "}}")));
    EXPECT_EQ(
        Differences(weight, expected, [&](auto row, auto column) { return column * n + row; }), 0);
  }
}

// u32 bits, group, in, out, scale dtype, four lengths.
TEST(QuantFixtureTest, Awq) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  for (const fs::path& path : FixturesIn(dir / "quant" / "awq_reference")) {
    SCOPED_TRACE(path.string());
    NIBBLE_ASSERT_OK_AND_ASSIGN(Fixture fixture, Fixture::Read(path));
    const std::int64_t bits = fixture.Number();
    const std::int64_t group = fixture.Number();
    const std::int64_t k = fixture.Number();
    const std::int64_t n = fixture.Number();
    const std::uint32_t scale_type = fixture.Number();
    std::uint32_t sizes[4];
    for (std::uint32_t& size : sizes) size = fixture.Number();
    const std::vector<TestTensor> tensors = {
        {"layer.qweight", "I32", {k, n / 8}, fixture.Bytes(sizes[0])},
        {"layer.scales", NameOfScale(scale_type), {k / group, n}, fixture.Bytes(sizes[1])},
        {"layer.qzeros", "I32", {k / group, n / 8}, fixture.Bytes(sizes[2])}};
    const std::string expected = fixture.Bytes(sizes[3]);
    EXPECT_TRUE(fixture.AtEnd());
    NIBBLE_ASSERT_OK_AND_ASSIGN(
        const LinearWeight weight,
        LoadLayer(tensors,
                  absl::StrCat(R"({"quantization_config":{"quant_method":"awq","bits":)", bits,
                               R"(,"group_size":)", group, R"(,"version":"gemm"}})")));
    EXPECT_EQ(
        Differences(weight, expected, [&](auto row, auto column) { return column * n + row; }), 0);
  }
}

// u32 id 0 (plain) or 2 (double quantization), count, block, six lengths, f32 nested offset.
void CheckBlocks4(Fixture& fixture, std::uint32_t id, const std::string& type) {
  const std::int64_t count = fixture.Number();
  const std::int64_t block = fixture.Number();
  std::uint32_t sizes[6];
  for (std::uint32_t& size : sizes) size = fixture.Number();
  const float offset = fixture.Float();
  const std::int64_t k = 256;
  const std::int64_t n = count / k;
  const std::int64_t blocks = count / block;
  std::vector<TestTensor> tensors = {
      {"layer.weight", "U8", {count / 2, 1}, fixture.Bytes(sizes[0])},
      {"layer.weight.absmax", id == 2 ? "U8" : "F32", {blocks}, fixture.Bytes(sizes[1])},
      {"layer.weight.quant_map", "F32", {16}, fixture.Bytes(sizes[2])}};
  const std::string nested = fixture.Bytes(sizes[3]);
  const std::string nested_map = fixture.Bytes(sizes[4]);
  std::string state = absl::StrCat(R"({"quant_type":")", type, R"(","blocksize":)", block,
                                   R"(,"dtype":"bfloat16","shape":[)", n, ",", k, "]");
  if (id == 2) {
    const auto nested_blocks = static_cast<std::int64_t>(nested.size() / 4);
    tensors.push_back({"layer.weight.nested_absmax", "F32", {nested_blocks}, nested});
    tensors.push_back({"layer.weight.nested_quant_map", "F32", {256}, nested_map});
    absl::StrAppend(&state, R"(,"nested_blocksize":256,"nested_offset":)",
                    DumpJson(Json(double{offset})));
  }
  state += "}";
  tensors.push_back({absl::StrCat("layer.weight.quant_state.bitsandbytes__", type),
                     "U8",
                     {static_cast<std::int64_t>(state.size())},
                     state});
  const std::string expected = fixture.Bytes(sizes[5]);
  EXPECT_TRUE(fixture.AtEnd());
  NIBBLE_ASSERT_OK_AND_ASSIGN(
      const LinearWeight weight,
      LoadLayer(tensors,
                R"({"quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":true}})"));
  EXPECT_EQ(Differences(weight, expected, [&](auto row, auto column) { return row * k + column; }),
            0);
}

// u32 id 1, out, in, three lengths.
void CheckRows8(Fixture& fixture) {
  const std::int64_t n = fixture.Number();
  const std::int64_t k = fixture.Number();
  std::uint32_t sizes[3];
  for (std::uint32_t& size : sizes) size = fixture.Number();
  const std::vector<TestTensor> tensors = {{"layer.weight", "I8", {n, k}, fixture.Bytes(sizes[0])},
                                           {"layer.SCB", "F32", {n}, fixture.Bytes(sizes[1])}};
  const std::string expected = fixture.Bytes(sizes[2]);
  EXPECT_TRUE(fixture.AtEnd());
  NIBBLE_ASSERT_OK_AND_ASSIGN(
      const LinearWeight weight,
      LoadLayer(tensors,
                R"({"quantization_config":{"quant_method":"bitsandbytes","load_in_8bit":true}})"));
  EXPECT_EQ(Differences(weight, expected, [&](auto row, auto column) { return row * k + column; }),
            0);
}

TEST(QuantFixtureTest, Bitsandbytes) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  for (const fs::path& path : FixturesIn(dir / "quant" / "bnb_reference")) {
    SCOPED_TRACE(path.string());
    NIBBLE_ASSERT_OK_AND_ASSIGN(Fixture fixture, Fixture::Read(path));
    const std::uint32_t id = fixture.Number();
    if (id == 1) {
      CheckRows8(fixture);
    } else {
      CheckBlocks4(fixture, id,
                   path.filename().string().find("fp4") == std::string::npos ? "nf4" : "fp4");
    }
  }
}

// Headers of files in the formats' own layouts, tensors at odd offsets among them.
TEST(QuantFixtureTest, SafetensorsHeaders) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  int files = 0;
  for (const auto& entry : fs::directory_iterator(dir / "quant" / "safetensors_reference")) {
    if (entry.path().extension() != ".safetensors") continue;
    SCOPED_TRACE(entry.path().string());
    const fs::path expected_path =
        entry.path().parent_path() / (entry.path().stem().string() + ".expected.json");
    NIBBLE_ASSERT_OK_AND_ASSIGN(const std::string text,
                                ReadTextFile(expected_path.string(), 1 << 20));
    NIBBLE_ASSERT_OK_AND_ASSIGN(const Json expected, ParseJson(text));
    NIBBLE_ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(entry.path().string()));
    const std::int64_t data_begin = 8 + expected.Find("header_size")->AsInt64();
    EXPECT_EQ(checkpoint->tensors().size(), expected.Find("tensors")->AsArray().size());
    for (const Json& want : expected.Find("tensors")->AsArray()) {
      const TensorInfo* tensor = checkpoint->Find(want.Find("name")->AsString());
      ASSERT_NE(tensor, nullptr) << want.Find("name")->AsString();
      EXPECT_EQ(NameOf(tensor->dtype), want.Find("dtype")->AsString());
      const Json::Array& offsets = want.Find("data_offsets")->AsArray();
      EXPECT_EQ(static_cast<std::int64_t>(tensor->offset), data_begin + offsets[0].AsInt64());
      EXPECT_EQ(static_cast<std::int64_t>(tensor->bytes),
                offsets[1].AsInt64() - offsets[0].AsInt64());
      std::vector<std::int64_t> shape;
      for (const Json& dim : want.Find("shape")->AsArray()) shape.push_back(dim.AsInt64());
      EXPECT_EQ(tensor->shape, shape);
    }
    ++files;
  }
  EXPECT_GE(files, 4);
}

}  // namespace
}  // namespace nibble
