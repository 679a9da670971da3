// bitsandbytes: LAYER.weight as flattened 4-bit blocks (nf4, fp4) that a quant_state blob
// describes, or as int8 rows with LAYER.SCB (LLM.int8()). Which, the tensors say; only the outlier
// threshold comes from the configuration.
#include <bit>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "runtime/base/ceil_div.h"
#include "runtime/base/json.h"
#include "runtime/base/status.h"
#include "runtime/weights/bitsandbytes_tables.h"
#include "runtime/weights/blockwise.h"
#include "runtime/weights/formats.h"
#include "runtime/weights/tensor_reader.h"

namespace nibble {
namespace {

constexpr std::uint64_t kMaxStateBytes = 64 * 1024;

// One layer of 4-bit blocks.
struct Blocks {
  const TensorInfo* weight = nullptr;
  const TensorInfo* absmax = nullptr;
  const std::array<float, 16>* table = nullptr;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t block = 64;
  // Double quantization: absmax holds u8 codes into nested_map, of blocks of nested_block.
  const TensorInfo* nested_absmax = nullptr;
  const TensorInfo* nested_map = nullptr;
  std::int64_t nested_block = 256;
  float nested_offset = 0;
};

absl::Status Bad(const TensorInfo& tensor, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(Shown(tensor), " ", why));
}

absl::StatusOr<std::int64_t> BlockSize(const Json& state, absl::string_view key,
                                       std::int64_t fallback, const TensorInfo& tensor) {
  ASSIGN_OR_RETURN(const std::int64_t size, IntegerOr(state, {key}, fallback));
  if (size < 1 || size > (1 << 20) || !std::has_single_bit(static_cast<std::uint64_t>(size))) {
    return Bad(tensor, absl::StrCat("says ", key, " ", size, ", not a power of two"));
  }
  return size;
}

class BitsandbytesFormat final : public WeightFormat {
 public:
  BitsandbytesFormat(const Checkpoint& checkpoint, std::string name, float threshold)
      : checkpoint_(checkpoint), name_(std::move(name)), threshold_(threshold) {}

  std::string Name() const override { return name_; }

  absl::StatusOr<LinearSpec> Describe(absl::string_view layer) const override {
    LinearSpec spec;
    if (const TensorInfo* state = FindState(layer)) {
      ASSIGN_OR_RETURN(const Blocks blocks, InspectBlocks(layer, *state));
      spec.n = blocks.n;
      spec.k = blocks.k;
      spec.kind = EncodingKind::kCodebook;
      spec.bits = 4;
      spec.group = GroupOfBlocks(blocks.k, blocks.block);
      spec.scales = ScaleKind::kF32;
    } else if (const TensorInfo* scb = checkpoint_.Find(absl::StrCat(layer, ".SCB"))) {
      ASSIGN_OR_RETURN(const TensorInfo* weight, InspectRows(layer, *scb));
      spec.n = weight->shape[0];
      spec.k = weight->shape[1];
      spec.kind = EncodingKind::kRow8;
      spec.dtype = DType::kI8;
      spec.bits = 8;
      spec.scales = ScaleKind::kF32;
      spec.activation = Activation();
    } else {
      return DescribeDense(checkpoint_, layer);
    }
    ASSIGN_OR_RETURN(spec.has_bias, HasBias(checkpoint_, layer, spec.n));
    return spec;
  }

  absl::StatusOr<LinearWeight> Load(absl::string_view layer) const override {
    LinearWeight out;
    if (const TensorInfo* state = FindState(layer)) {
      ASSIGN_OR_RETURN(const Blocks blocks, InspectBlocks(layer, *state));
      out.n = blocks.n;
      out.k = blocks.k;
      ASSIGN_OR_RETURN(out.encoding, LoadBlocks(blocks));
    } else if (const TensorInfo* scb = checkpoint_.Find(absl::StrCat(layer, ".SCB"))) {
      ASSIGN_OR_RETURN(const TensorInfo* weight, InspectRows(layer, *scb));
      out.n = weight->shape[0];
      out.k = weight->shape[1];
      ASSIGN_OR_RETURN(out.encoding, LoadRows(layer, *weight, *scb));
    } else {
      return LoadDense(checkpoint_, layer);
    }
    ASSIGN_OR_RETURN(out.bias, ReadBias(checkpoint_, layer, out.n));
    return out;
  }

  bool Has(absl::string_view layer) const override {
    return checkpoint_.Find(absl::StrCat(layer, ".weight")) != nullptr;
  }

 private:
  // The blob's name tells the code table.
  const TensorInfo* FindState(absl::string_view layer) const {
    for (const char* type : {"nf4", "fp4"}) {
      const TensorInfo* state =
          checkpoint_.Find(absl::StrCat(layer, ".weight.quant_state.bitsandbytes__", type));
      if (state != nullptr) return state;
    }
    return nullptr;
  }

  ActivationQuant Activation() const {
    return threshold_ > 0 ? ActivationQuant::kOutlierSplit : ActivationQuant::kDynamic;
  }

  absl::StatusOr<Json> ReadState(const TensorInfo& state) const {
    if (state.dtype != DType::kU8 || state.bytes > kMaxStateBytes) {
      return Bad(state, "is not a short JSON text");
    }
    ASSIGN_OR_RETURN(const HostBuffer data, ReadTensor(checkpoint_, state));
    const auto text = data.As<char>();
    const absl::StatusOr<Json> json = ParseJson(absl::string_view(text.data(), text.size()));
    if (!json.ok()) return Bad(state, absl::StrCat("is not JSON: ", json.status().message()));
    if (!json->is_object()) return Bad(state, "is not a JSON object");
    return *json;
  }

  absl::StatusOr<Blocks> InspectBlocks(absl::string_view layer, const TensorInfo& state) const {
    ASSIGN_OR_RETURN(const Json json, ReadState(state));
    Blocks blocks;
    ASSIGN_OR_RETURN(const std::string type, NameOr(json, {"quant_type"}, ""));
    if (type != "nf4" && type != "fp4") {
      return Bad(state,
                 absl::StrCat("says quant_type \"", type.substr(0, 32), "\", not nf4 or fp4"));
    }
    blocks.table = type == "nf4" ? &kNf4Table : &kFp4Table;
    ASSIGN_OR_RETURN(blocks.block, BlockSize(json, "blocksize", 64, state));
    const Json* shape = json.Find("shape");
    if (shape == nullptr || !shape->is_array() || shape->AsArray().size() != 2 ||
        !shape->AsArray()[0].is_integer() || !shape->AsArray()[1].is_integer()) {
      return Bad(state, "says no \"shape\" of two integers");
    }
    blocks.n = shape->AsArray()[0].AsInt64();
    blocks.k = shape->AsArray()[1].AsInt64();
    constexpr std::int64_t kMaxDim = std::numeric_limits<std::int32_t>::max();
    if (blocks.n < 1 || blocks.n > kMaxDim || blocks.k < 1 || blocks.k > kMaxDim) {
      return Bad(state, absl::StrCat("says shape [", blocks.n, ", ", blocks.k, "]"));
    }
    const std::int64_t count = blocks.n * blocks.k;
    const std::string weight = absl::StrCat(layer, ".weight");
    ASSIGN_OR_RETURN(blocks.weight, FindTensor(checkpoint_, weight));
    if (blocks.weight->bytes != static_cast<std::uint64_t>(CeilDiv(count, 2))) {
      return Bad(*blocks.weight,
                 absl::StrCat("does not hold the 4-bit codes of [", blocks.n, ", ", blocks.k, "]"));
    }
    ASSIGN_OR_RETURN(blocks.absmax, FindTensor(checkpoint_, absl::StrCat(weight, ".absmax")));
    const std::int64_t scales = CeilDiv(count, blocks.block);
    RETURN_IF_ERROR(CheckShape(*blocks.absmax, {scales}));
    blocks.nested_absmax = checkpoint_.Find(absl::StrCat(weight, ".nested_absmax"));
    if (blocks.nested_absmax == nullptr) {
      RETURN_IF_ERROR(CheckType(*blocks.absmax, {DType::kF32}));
      return blocks;
    }
    RETURN_IF_ERROR(InspectNested(weight, json, state, scales, blocks));
    return blocks;
  }

  absl::Status InspectNested(absl::string_view weight, const Json& json, const TensorInfo& state,
                             std::int64_t scales, Blocks& blocks) const {
    RETURN_IF_ERROR(CheckType(*blocks.absmax, {DType::kU8}));
    ASSIGN_OR_RETURN(blocks.nested_block, BlockSize(json, "nested_blocksize", 256, state));
    RETURN_IF_ERROR(CheckType(*blocks.nested_absmax, {DType::kF32}));
    RETURN_IF_ERROR(CheckShape(*blocks.nested_absmax, {CeilDiv(scales, blocks.nested_block)}));
    ASSIGN_OR_RETURN(blocks.nested_map,
                     FindTensor(checkpoint_, absl::StrCat(weight, ".nested_quant_map")));
    RETURN_IF_ERROR(CheckType(*blocks.nested_map, {DType::kF32}));
    RETURN_IF_ERROR(CheckShape(*blocks.nested_map, {256}));
    const Json* offset = json.Find("nested_offset");
    if (offset == nullptr || !offset->is_number()) return Bad(state, "says no \"nested_offset\"");
    blocks.nested_offset = static_cast<float>(offset->AsDouble());
    return absl::OkStatus();
  }

  absl::StatusOr<Codebook> LoadBlocks(const Blocks& blocks) const {
    RETURN_IF_ERROR(CheckMap(blocks));
    ASSIGN_OR_RETURN(HostBuffer packed, ReadTensor(checkpoint_, *blocks.weight));
    ASSIGN_OR_RETURN(HostBuffer absmax, ReadTensor(checkpoint_, *blocks.absmax));
    if (blocks.nested_absmax != nullptr) {
      ASSIGN_OR_RETURN(absmax, Unnest(blocks, absmax));
    }
    for (const float scale : absmax.As<float>()) {
      if (!std::isfinite(scale)) return Bad(*blocks.absmax, "holds an infinite scale or NaN");
    }
    return FromBlocks(*blocks.table, blocks.n, blocks.k, blocks.block, std::move(packed),
                      absmax.As<float>());
  }

  // scale = map[code] * nested + offset: two roundings, as the library computes it.
  absl::StatusOr<HostBuffer> Unnest(const Blocks& blocks, const HostBuffer& codes) const {
    ASSIGN_OR_RETURN(const HostBuffer nested, ReadTensor(checkpoint_, *blocks.nested_absmax));
    ASSIGN_OR_RETURN(const HostBuffer map, ReadTensor(checkpoint_, *blocks.nested_map));
    HostBuffer scales(codes.size() * sizeof(float));
    for (std::size_t j = 0; j < codes.size(); ++j) {
      const float product = map.As<float>()[codes.As<std::uint8_t>()[j]] *
                            nested.As<float>()[j / static_cast<std::size_t>(blocks.nested_block)];
      scales.As<float>()[j] = product + blocks.nested_offset;
    }
    return scales;
  }

  // The library ignores the stored table for 4-bit codes; another one would be another format.
  absl::Status CheckMap(const Blocks& blocks) const {
    const TensorInfo* map = checkpoint_.Find(absl::StrCat(blocks.weight->name, ".quant_map"));
    if (map == nullptr) return absl::OkStatus();
    RETURN_IF_ERROR(CheckType(*map, {DType::kF32}));
    RETURN_IF_ERROR(CheckShape(*map, {16}));
    ASSIGN_OR_RETURN(const std::vector<float> values, ReadVector(checkpoint_, map->name));
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (std::abs(values[i] - (*blocks.table)[i]) > 1e-6f || std::isnan(values[i])) {
        return Bad(*map, absl::StrCat("has ", values[i], " for code ", i, ", which stands for ",
                                      (*blocks.table)[i]));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<const TensorInfo*> InspectRows(absl::string_view layer,
                                                const TensorInfo& scb) const {
    ASSIGN_OR_RETURN(const TensorInfo* weight,
                     FindTensor(checkpoint_, absl::StrCat(layer, ".weight")));
    RETURN_IF_ERROR(CheckMatrix(*weight));
    RETURN_IF_ERROR(CheckType(*weight, {DType::kI8}));
    RETURN_IF_ERROR(CheckType(scb, {DType::kF32}));
    RETURN_IF_ERROR(CheckShape(scb, {weight->shape[0]}));
    return weight;
  }

  absl::StatusOr<Row8> LoadRows(absl::string_view layer, const TensorInfo& weight,
                                const TensorInfo& scb) const {
    if (const TensorInfo* order = checkpoint_.Find(absl::StrCat(layer, ".weight_format"))) {
      ASSIGN_OR_RETURN(const HostBuffer data, ReadTensor(checkpoint_, *order));
      if (data.size() != 1 || data.bytes()[0] != std::byte{0}) {
        return absl::UnimplementedError(
            absl::StrCat(Shown(*order),
                         " is not 0 (\"row\"): save the model again with a current bitsandbytes"));
      }
    }
    Row8 row8;
    ASSIGN_OR_RETURN(row8.codes, ReadTensor(checkpoint_, weight));
    ASSIGN_OR_RETURN(row8.scales, ReadVector(checkpoint_, scb.name));
    for (float& scale : row8.scales) {
      if (!std::isfinite(scale)) return Bad(scb, "holds an infinite scale or NaN");
      scale *= kInt8Step;
    }
    row8.activation = Activation();
    row8.outlier_threshold = threshold_;
    return row8;
  }

  const Checkpoint& checkpoint_;
  const std::string name_;
  const float threshold_;
};

}  // namespace

OpenedFormat OpenBitsandbytes(const Checkpoint& checkpoint, const QuantConfig& quant) {
  double threshold = 6.0;
  if (const Json* value = FirstOf(quant.json, {"llm_int8_threshold"})) {
    if (!value->is_number() || !(value->AsDouble() >= 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat(checkpoint.path(), ": llm_int8_threshold is not a number of at least 0"));
    }
    threshold = value->AsDouble();
  }
  ASSIGN_OR_RETURN(const bool is_int8,
                   BoolOr(quant.json, {"load_in_8bit", "_load_in_8bit"}, false));
  ASSIGN_OR_RETURN(const std::string type, NameOr(quant.json, {"bnb_4bit_quant_type"}, "fp4"));
  return std::make_unique<BitsandbytesFormat>(
      checkpoint, absl::StrCat("bitsandbytes ", is_int8 ? "int8" : type.substr(0, 16)),
      static_cast<float>(threshold));
}

}  // namespace nibble
