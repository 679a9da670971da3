// GPTQ (AutoGPTQ, GPTQModel, auto-round): LAYER.qweight packs W[k, n] along k into i32 words,
// LAYER.qzeros along n. Undone here, so no kernel ever hears of GPTQ:
//   - bit i*b of a column of qweight is code i, also for 3 bits, where 32 codes take 3 words, so
//     that transposing the words gives code rows;
//   - format v1 stores zero points minus one, format v2 as they are;
//   - g_idx, not desc_act, says whether the groups are in order.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/weights/code_rows.h"
#include "runtime/weights/formats.h"
#include "runtime/weights/group_order.h"
#include "runtime/weights/module_pattern.h"
#include "runtime/weights/tensor_reader.h"
#include "runtime/weights/transpose.h"

namespace nibble {
namespace {

// How the words of qzeros become zero points.
enum class Zeros {
  kPlusOne,      // v1: each field plus one, wrapping
  kPlusOneWord,  // v1 by GPTQModel since 0.9: one added to every field of the word at once, with
                 // carries
  kAsStored,     // v2
};

struct Settings {
  int bits = 4;
  std::int64_t group_size = -1;
  std::optional<bool> sym;
};

// A rule of `dynamic`: what the modules that match override.
struct Rule {
  ModulePattern pattern;
  Settings settings;
};

absl::Status Unsupported(absl::string_view what) {
  return absl::UnimplementedError(absl::StrCat("GPTQ checkpoint with ", what,
                                               " is not supported: save it as format gptq or "
                                               "gptq_v2 with 2, 3, 4 or 8 bits in int32 words"));
}

absl::StatusOr<Settings> ReadSettings(const Json& json, const Settings& fallback) {
  Settings settings;
  ASSIGN_OR_RETURN(const std::int64_t bits,
                   IntegerOr(json, {"bits", "w_bit", "wbits"}, fallback.bits));
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
    return Unsupported(absl::StrCat(bits, " bits"));
  settings.bits = static_cast<int>(bits);
  ASSIGN_OR_RETURN(settings.group_size,
                   IntegerOr(json, {"group_size", "q_group_size"}, fallback.group_size));
  if (settings.group_size != -1 && settings.group_size < 1) {
    return absl::InvalidArgumentError(absl::StrCat("quantization config: group_size is ",
                                                   settings.group_size, ", not -1 or at least 1"));
  }
  settings.sym = fallback.sym;
  if (FirstOf(json, {"sym"}) != nullptr) {
    ASSIGN_OR_RETURN(settings.sym, BoolOr(json, {"sym"}, true));
  }
  return settings;
}

// Whether meta.quantizer names GPTQModel of at least 0.9.
bool WritesWholeWords(const Json& json) {
  const Json* meta = json.Find("meta");
  const Json* quantizer = meta == nullptr ? nullptr : meta->Find("quantizer");
  if (quantizer == nullptr) return false;
  const Json::Array names = quantizer->is_array() ? quantizer->AsArray() : Json::Array{*quantizer};
  for (const Json& name : names) {
    if (!name.is_string() || !absl::StartsWithIgnoreCase(name.AsString(), "gptqmodel:")) continue;
    const std::vector<std::string> version =
        absl::StrSplit(absl::string_view(name.AsString()).substr(10), '.');
    int major = 0;
    int minor = 0;
    if (version.size() < 2 || !absl::SimpleAtoi(version[0], &major)) continue;
    const bool has_minor = absl::SimpleAtoi(version[1], &minor);
    if (major > 0 || (has_minor && minor >= 9)) return true;
  }
  return false;
}

absl::StatusOr<std::vector<Rule>> ReadRules(const Json& json, const Settings& defaults) {
  std::vector<Rule> rules;
  const Json* dynamic = FirstOf(json, {"dynamic"});
  if (dynamic == nullptr) return rules;
  if (!dynamic->is_object()) {
    return absl::InvalidArgumentError("quantization config: \"dynamic\" is not an object");
  }
  for (const Json::Member& member : dynamic->AsObject()) {
    absl::string_view pattern = member.first;
    // "-:" leaves modules unquantized, which the tensors themselves tell.
    if (absl::StartsWith(pattern, "-:")) continue;
    absl::ConsumePrefix(&pattern, "+:");
    if (!member.second.is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat("quantization config: dynamic \"", pattern, "\" is not an object"));
    }
    ASSIGN_OR_RETURN(ModulePattern compiled, ModulePattern::Compile(pattern));
    ASSIGN_OR_RETURN(Settings settings, ReadSettings(member.second, defaults));
    rules.push_back({std::move(compiled), std::move(settings)});
  }
  return rules;
}

// Of auto-round: settings by exact module path.
absl::StatusOr<std::map<std::string, Settings, std::less<>>> ReadOverrides(
    const Json& json, const Settings& defaults) {
  std::map<std::string, Settings, std::less<>> out;
  const Json* extra = FirstOf(json, {"extra_config"});
  if (extra == nullptr || !extra->is_object()) return out;
  for (const Json::Member& member : extra->AsObject()) {
    const Json* bits = FirstOf(member.second, {"bits"});
    if (bits != nullptr && bits->is_integer() && bits->AsInt64() > 8) continue;  // left in 16 bits
    ASSIGN_OR_RETURN(Settings settings, ReadSettings(member.second, defaults));
    out.emplace(member.first, settings);
  }
  return out;
}

// What is known of one layer before its codes are read.
struct Layer {
  const TensorInfo* qweight = nullptr;
  const TensorInfo* qzeros = nullptr;
  const TensorInfo* scales = nullptr;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t group = 0;
  std::int64_t groups = 0;
  Settings settings;
  std::vector<std::int32_t> permutation;
  std::optional<int> constant_zero;  // of every group, when the layer is symmetric
  bool has_bias = false;
};

class GptqFormat final : public WeightFormat {
 public:
  GptqFormat(const Checkpoint& checkpoint, Settings defaults, Zeros zeros)
      : checkpoint_(checkpoint), defaults_(std::move(defaults)), zeros_(zeros) {}

  // Used while opening only.
  void set_rules(std::vector<Rule> rules) { rules_ = std::move(rules); }
  void set_overrides(std::map<std::string, Settings, std::less<>> o) { overrides_ = std::move(o); }
  void set_act_order(bool act_order) { act_order_ = act_order; }

  std::string Name() const override {
    return absl::StrCat("gptq int", defaults_.bits,
                        defaults_.group_size < 0 ? "" : absl::StrCat(" g", defaults_.group_size),
                        act_order_ ? " act-order" : "");
  }

  absl::StatusOr<LinearSpec> Describe(absl::string_view layer) const override {
    if (!IsPacked(layer)) return DescribeOther(layer);
    ASSIGN_OR_RETURN(const Layer found, Inspect(layer));
    LinearSpec spec;
    spec.n = found.n;
    spec.k = found.k;
    spec.kind = EncodingKind::kAffine;
    spec.bits = found.settings.bits;
    spec.group = found.group;
    spec.scales = found.scales->dtype == DType::kF16    ? ScaleKind::kF16
                  : found.scales->dtype == DType::kBF16 ? ScaleKind::kBF16
                                                        : ScaleKind::kF32;
    spec.offset = found.constant_zero ? OffsetKind::kConstant : OffsetKind::kZeroCodes;
    spec.permuted = !found.permutation.empty();
    spec.has_bias = found.has_bias;
    return spec;
  }

  absl::StatusOr<LinearWeight> Load(absl::string_view layer) const override {
    if (!IsPacked(layer)) return LoadDense(checkpoint_, layer);
    ASSIGN_OR_RETURN(Layer found, Inspect(layer));
    Affine affine;
    affine.bits = found.settings.bits;
    affine.group = found.group;
    ASSIGN_OR_RETURN(affine.codes, ReadCodes(found));
    ASSIGN_OR_RETURN(affine.scales, ReadScalesTransposed(checkpoint_, *found.scales));
    if (found.constant_zero) {
      affine.offset = ConstantOffset{*found.constant_zero};
    } else {
      ASSIGN_OR_RETURN(HostBuffer zeros, ReadZeros(found));
      affine.offset = ZeroCodes{std::move(zeros)};
    }
    affine.permutation = std::move(found.permutation);
    LinearWeight weight;
    weight.n = found.n;
    weight.k = found.k;
    weight.encoding = std::move(affine);
    ASSIGN_OR_RETURN(weight.bias, ReadBias(checkpoint_, layer, found.n));
    return weight;
  }

  bool Has(absl::string_view layer) const override {
    return IsPacked(layer) || checkpoint_.Find(absl::StrCat(layer, ".weight")) != nullptr;
  }

 private:
  bool IsPacked(absl::string_view layer) const {
    return checkpoint_.Find(absl::StrCat(layer, ".qweight")) != nullptr;
  }

  absl::StatusOr<LinearSpec> DescribeOther(absl::string_view layer) const {
    if (const TensorInfo* marlin = checkpoint_.Find(absl::StrCat(layer, ".B"))) {
      return absl::UnimplementedError(absl::StrCat(
          Shown(*marlin),
          " is in the Marlin kernel's own order: use the GPTQ checkpoint it was made from"));
    }
    return DescribeDense(checkpoint_, layer);
  }

  absl::StatusOr<Settings> SettingsOf(absl::string_view layer) const {
    if (const auto found = overrides_.find(std::string(layer)); found != overrides_.end()) {
      return found->second;
    }
    for (const Rule& rule : rules_) {
      ASSIGN_OR_RETURN(const bool matches, rule.pattern.Matches(layer));
      if (matches) return rule.settings;
    }
    return defaults_;
  }

  absl::StatusOr<Layer> Inspect(absl::string_view name) const {
    Layer layer;
    ASSIGN_OR_RETURN(layer.settings, SettingsOf(name));
    const int bits = layer.settings.bits;
    ASSIGN_OR_RETURN(layer.qweight, FindTensor(checkpoint_, absl::StrCat(name, ".qweight")));
    ASSIGN_OR_RETURN(layer.qzeros, FindTensor(checkpoint_, absl::StrCat(name, ".qzeros")));
    ASSIGN_OR_RETURN(layer.scales, FindTensor(checkpoint_, absl::StrCat(name, ".scales")));
    RETURN_IF_ERROR(CheckMatrix(*layer.qweight));
    RETURN_IF_ERROR(CheckType(*layer.qweight, {DType::kI32}));
    RETURN_IF_ERROR(CheckType(*layer.qzeros, {DType::kI32}));
    RETURN_IF_ERROR(CheckType(*layer.scales, {DType::kF16, DType::kBF16, DType::kF32}));
    const std::int64_t rows = layer.qweight->shape[0];
    layer.n = layer.qweight->shape[1];
    layer.k = rows * 32 / bits;
    const std::int64_t unit = bits == 3 ? 32 : 32 / bits;  // codes that end at the end of a word
    if (rows * 32 % bits != 0 || layer.k % unit != 0 || layer.n % unit != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          Shown(*layer.qweight), " does not hold whole words of ", bits, "-bit codes"));
    }
    layer.group = layer.settings.group_size == -1 ? layer.k : layer.settings.group_size;
    layer.group = std::min(layer.group, layer.k);
    layer.groups = (layer.k + layer.group - 1) / layer.group;
    if (const absl::Status status = CheckShape(*layer.qzeros, {layer.groups, layer.n * bits / 32});
        !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          status.message(), " for ", bits, " bits and group_size ", layer.settings.group_size,
          ": the quantization config does not fit the tensors"));
    }
    RETURN_IF_ERROR(CheckShape(*layer.scales, {layer.groups, layer.n}));
    ASSIGN_OR_RETURN(layer.permutation,
                     ReadGroupOrder(checkpoint_, checkpoint_.Find(absl::StrCat(name, ".g_idx")),
                                    layer.k, layer.group));
    ASSIGN_OR_RETURN(layer.has_bias, HasBias(checkpoint_, name, layer.n));
    if (layer.settings.sym != false) RETURN_IF_ERROR(FindConstantZero(layer));
    return layer;
  }

  // A file that calls itself symmetric has one zero point; when it has several after all, they
  // count.
  absl::Status FindConstantZero(Layer& layer) const {
    ASSIGN_OR_RETURN(const HostBuffer zeros, ReadZeros(layer));
    const auto codes = zeros.As<std::uint8_t>();
    if (std::all_of(codes.begin(), codes.end(), [&](auto zero) { return zero == codes[0]; })) {
      layer.constant_zero = codes[0];
    }
    const int middle = 1 << (layer.settings.bits - 1);
    if (layer.settings.sym == true && layer.constant_zero != middle && !warned_.exchange(true)) {
      LogWarning(
          "the checkpoint says sym=true, but has other zero points than the middle; they are used",
          {{"tensor", layer.qzeros->name}});
    }
    return absl::OkStatus();
  }

  // u8[n, groups]
  absl::StatusOr<HostBuffer> ReadZeros(const Layer& layer) const {
    const int bits = layer.settings.bits;
    ASSIGN_OR_RETURN(HostBuffer words, ReadTensor(checkpoint_, *layer.qzeros));
    if (zeros_ == Zeros::kPlusOneWord && bits != 3) {
      const std::uint32_t ones = bits == 2 ? 0x55555555u : bits == 4 ? 0x11111111u : 0x01010101u;
      for (std::uint32_t& word : words.As<std::uint32_t>()) word += ones;
    }
    const bool add_one = zeros_ == Zeros::kPlusOne || (zeros_ == Zeros::kPlusOneWord && bits == 3);
    const auto top = static_cast<std::uint8_t>((1 << bits) - 1);
    HostBuffer by_group(static_cast<std::size_t>(layer.groups * layer.n));
    auto* codes = by_group.As<std::uint8_t>().data();
    const std::int64_t row_bytes = layer.n * bits / 8;
    for (std::int64_t g = 0; g < layer.groups; ++g) {
      UnpackCodes(words.data() + g * row_bytes, bits, layer.n, codes + g * layer.n);
    }
    if (add_one) {
      bool saturated = false;
      for (std::uint8_t& code : by_group.As<std::uint8_t>()) {
        saturated = saturated || code == top;
        code = static_cast<std::uint8_t>((code + 1) & top);
      }
      if (saturated && layer.settings.sym == false && !warned_.exchange(true)) {
        LogWarning(
            "zero points of 0 in format v1, which writers store in different ways; read as 0",
            {{"tensor", layer.qzeros->name}});
      }
    }
    HostBuffer out(by_group.size());
    Transpose(codes, layer.groups, layer.n, out.As<std::uint8_t>().data());
    return out;
  }

  absl::StatusOr<HostBuffer> ReadCodes(const Layer& layer) const {
    ASSIGN_OR_RETURN(const HostBuffer words, ReadTensor(checkpoint_, *layer.qweight));
    HostBuffer codes(words.size());
    Transpose(words.As<std::uint32_t>().data(), layer.qweight->shape[0], layer.n,
              codes.As<std::uint32_t>().data());
    if (!layer.permutation.empty()) {
      ReorderCodes(layer.permutation, layer.n, layer.settings.bits, codes);
    }
    return codes;
  }

  const Checkpoint& checkpoint_;
  const Settings defaults_;
  const Zeros zeros_;
  bool act_order_ = false;
  std::vector<Rule> rules_;
  std::map<std::string, Settings, std::less<>> overrides_;
  mutable std::atomic<bool> warned_ = false;  // once a checkpoint, not once a layer
};

// The writer's own formats; everything but v1 and v2 keeps codes in a kernel's order.
absl::StatusOr<Zeros> ReadZeroRule(const Json& json, int bits) {
  ASSIGN_OR_RETURN(const std::string format, NameOr(json, {"checkpoint_format", "format"}, "gptq"));
  ASSIGN_OR_RETURN(const bool is_marlin, BoolOr(json, {"is_marlin_format"}, false));
  if (is_marlin) return Unsupported("format \"marlin\"");
  if (format == "gptq_v2") return Zeros::kAsStored;
  if (format == "gptq_p") {
    // Bit planes; at 2, 4 and 8 bits there is one plane, and the words are those of gptq_v2.
    if (bits == 3) return Unsupported("format \"gptq_p\" (bit planes) and 3 bits");
    return Zeros::kAsStored;
  }
  if (format == "gptq") return WritesWholeWords(json) ? Zeros::kPlusOneWord : Zeros::kPlusOne;
  return Unsupported(absl::StrCat("format \"", format.substr(0, 64), "\""));
}

absl::Status CheckWords(const Json& json) {
  ASSIGN_OR_RETURN(const std::string words, NameOr(json, {"pack_dtype"}, "int32"));
  if (words == "int32" || words == "torch.int32") return absl::OkStatus();
  return Unsupported(absl::StrCat("pack_dtype ", words.substr(0, 64)));
}

}  // namespace

OpenedFormat OpenGptq(const Checkpoint& checkpoint, const QuantConfig& quant) {
  if (FirstOf(quant.json, {"bits", "w_bit", "wbits"}) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": the GPTQ quantization config does not say \"bits\""));
  }
  RETURN_IF_ERROR(CheckWords(quant.json));
  ASSIGN_OR_RETURN(const Settings defaults, ReadSettings(quant.json, Settings()));
  ASSIGN_OR_RETURN(std::vector<Rule> rules, ReadRules(quant.json, defaults));
  int narrowest = defaults.bits;
  for (const Rule& rule : rules) {
    if (rule.settings.bits == 3) narrowest = 3;
  }
  ASSIGN_OR_RETURN(const Zeros zeros, ReadZeroRule(quant.json, narrowest));
  ASSIGN_OR_RETURN(const bool act_order, BoolOr(quant.json, {"desc_act"}, false));
  auto format = std::make_unique<GptqFormat>(checkpoint, defaults, zeros);
  format->set_rules(std::move(rules));
  format->set_act_order(act_order && defaults.group_size != -1);
  return format;
}

OpenedFormat OpenAutoRound(const Checkpoint& checkpoint, const QuantConfig& quant) {
  ASSIGN_OR_RETURN(const std::string packing, NameOr(quant.json, {"packing_format"}, "auto_round"));
  if (absl::EndsWith(packing, "auto_awq")) return OpenAwq(checkpoint, quant);
  if (packing != "auto_round" && packing != "auto_round:gptqmodel" &&
      packing != "auto_round:auto_gptq" && packing != "auto_round:gptq") {
    return absl::UnimplementedError(
        absl::StrCat(checkpoint.path(), ": auto-round packing_format \"", packing.substr(0, 64),
                     "\" is not supported: export as auto_round:auto_gptq"));
  }
  ASSIGN_OR_RETURN(const Settings defaults, ReadSettings(quant.json, Settings()));
  ASSIGN_OR_RETURN(auto overrides, ReadOverrides(quant.json, defaults));
  const bool v1 = packing == "auto_round:auto_gptq" || packing == "auto_round:gptq";
  auto format =
      std::make_unique<GptqFormat>(checkpoint, defaults, v1 ? Zeros::kPlusOne : Zeros::kAsStored);
  format->set_overrides(std::move(overrides));
  return format;
}

}  // namespace nibble
