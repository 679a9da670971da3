// Checkpoints made by other people's tools: sums over every weight as the tool itself decodes it.
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "runtime/base/file.h"
#include "runtime/weights/format.h"
#include "tests/support/conformance.h"
#include "tests/weights/files.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// The GGUF name of a Hugging Face layer.
std::string GgufName(absl::string_view name) {
  if (name == "model.embed_tokens") return "token_embd";
  if (name == "lm_head") return "output";
  return absl::StrReplaceAll(name, {{"model.layers.", "blk."},
                                    {"self_attn.q_proj", "attn_q"},
                                    {"self_attn.k_proj", "attn_k"},
                                    {"self_attn.v_proj", "attn_v"},
                                    {"self_attn.o_proj", "attn_output"},
                                    {"mlp.gate_proj", "ffn_gate"},
                                    {"mlp.up_proj", "ffn_up"},
                                    {"mlp.down_proj", "ffn_down"}});
}

// Row i of the half-split order, in the interleaved rows of GGUF's llama.
std::vector<std::int32_t> UndoInterleave(std::int64_t rows, std::int64_t heads) {
  const std::int64_t dim = rows / heads;
  std::vector<std::int32_t> order;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t j = row % dim;
    const std::int64_t from = j < dim / 2 ? 2 * j : 2 * (j - dim / 2) + 1;
    order.push_back(static_cast<std::int32_t>(row - j + from));
  }
  return order;
}

absl::StatusOr<LinearWeight> LoadNamed(const Checkpoint& checkpoint, const WeightFormat& format,
                                       const std::string& name) {
  if (checkpoint.kind() != CheckpointKind::kGguf) return format.Load(name);
  auto weight = format.Load(GgufName(name));
  if (!weight.ok() || checkpoint.gguf()->String("general.architecture") == nullptr ||
      *checkpoint.gguf()->String("general.architecture") != "llama") {
    return weight;
  }
  const char* heads = absl::EndsWith(name, "q_proj")   ? "llama.attention.head_count"
                      : absl::EndsWith(name, "k_proj") ? "llama.attention.head_count_kv"
                                                       : nullptr;
  if (heads == nullptr) return weight;
  const auto order = UndoInterleave(weight->n, *checkpoint.gguf()->Integer(heads));
  return PermuteRows(*std::move(weight), order);
}

struct Sums {
  double sum = 0;
  double sum_abs = 0;
  double wsum = 0;
};

Sums SumsOf(const std::vector<float>& values) {
  Sums sums;
  for (std::size_t i = 0; i < values.size(); ++i) {
    sums.sum += static_cast<double>(values[i]);
    sums.sum_abs += std::abs(static_cast<double>(values[i]));
    sums.wsum += static_cast<double>(values[i]) * static_cast<double>(i % 97 + 1);
  }
  return sums;
}

LoadQuantization FlagsOf(const Json& reference) {
  const Json* flags = reference.Find("serve_flags");
  if (flags == nullptr) return LoadQuantization::kNone;
  for (const Json& flag : flags->AsArray()) {
    if (flag.AsString() == "nf4") return LoadQuantization::kNf4;
    if (flag.AsString() == "fp4") return LoadQuantization::kFp4;
    if (flag.AsString() == "int8") return LoadQuantization::kInt8;
  }
  return LoadQuantization::kNone;
}

void CheckLayer(const LinearWeight& weight, const Json& expected) {
  EXPECT_EQ(weight.n, expected.Find("shape")->AsArray()[0].AsInt64());
  EXPECT_EQ(weight.k, expected.Find("shape")->AsArray()[1].AsInt64());
  NIBBLE_ASSERT_OK_AND_ASSIGN(const std::vector<float> values, Dequantize(weight));
  const Sums sums = SumsOf(values);
  // LLM.int8() multiplies twice where Row8 multiplies once: the last bit of f32 may differ.
  const bool exact = !std::holds_alternative<Row8>(weight.encoding);
  const double tolerance = (exact ? 1e-11 : 1e-6) * expected.Find("sum_abs")->AsDouble();
  EXPECT_NEAR(sums.sum, expected.Find("sum")->AsDouble(), tolerance);
  EXPECT_NEAR(sums.sum_abs, expected.Find("sum_abs")->AsDouble(), tolerance);
  EXPECT_NEAR(sums.wsum, expected.Find("wsum")->AsDouble(), 97 * tolerance);
  for (const Json& sample : expected.Find("samples")->AsArray()) {
    const auto index = static_cast<std::size_t>(sample.AsArray()[0].AsInt64());
    const auto want = static_cast<float>(sample.AsArray()[1].AsDouble());
    if (exact) {
      EXPECT_EQ(values[index], want) << "element " << index;
    } else {
      EXPECT_FLOAT_EQ(values[index], want) << "element " << index;
    }
  }
}

// Gives how many layers were compared.
void CheckCheckpoint(const fs::path& directory, int& layers) {
  NIBBLE_ASSERT_OK_AND_ASSIGN(const std::string text,
                              ReadTextFile((directory / "reference.json").string(), 1 << 26));
  NIBBLE_ASSERT_OK_AND_ASSIGN(const Json reference, ParseJson(text));
  const Json* weights = reference.Find("weights");
  if (weights == nullptr) return;  // unquantized
  const Json* file = reference.Find("file");
  const fs::path path = file == nullptr ? directory : directory / file->AsString();
  NIBBLE_ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(path.string()));
  NIBBLE_ASSERT_OK_AND_ASSIGN(const auto format, OpenFormat(*checkpoint, FlagsOf(reference)));
  GTEST_LOG_(INFO) << directory.filename().string() << ": " << format->Name();
  for (const Json::Member& member : weights->AsObject()) {
    SCOPED_TRACE(member.first);
    const std::string name =
        checkpoint->kind() == CheckpointKind::kGguf ? GgufName(member.first) : member.first;
    EXPECT_TRUE(format->Has(name));
    NIBBLE_ASSERT_OK_AND_ASSIGN(const LinearSpec spec, format->Describe(name));
    NIBBLE_ASSERT_OK_AND_ASSIGN(const LinearWeight weight,
                                LoadNamed(*checkpoint, *format, member.first));
    EXPECT_EQ(SpecOf(weight), spec) << Describe(SpecOf(weight)) << " is not " << Describe(spec);
    CheckLayer(weight, member.second);
    ++layers;
  }
}

TEST(ReferenceChecksumTest, EveryWeightOfEveryCheckpoint) {
  NIBBLE_REQUIRE_CONFORMANCE(dir);
  int layers = 0;
  for (const auto& entry : fs::directory_iterator(dir / "checkpoints")) {
    if (!fs::exists(entry.path() / "reference.json")) continue;
    SCOPED_TRACE(entry.path().filename().string());
    CheckCheckpoint(entry.path(), layers);
  }
  EXPECT_GE(layers, 50);
}

}  // namespace
}  // namespace nibble
