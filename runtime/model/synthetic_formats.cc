#include "runtime/model/synthetic_formats.h"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "runtime/model/synthetic.h"
#include "runtime/weights/bitsandbytes_tables.h"
#include "runtime/weights/blockwise.h"
#include "runtime/weights/gguf.h"
#include "runtime/weights/gguf_blocks.h"

namespace nibble {
namespace {

// ggml's numbers of its types.
enum Ggml : int {
  kGgmlF32 = 0,
  kGgmlF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kIQ4_XS = 23,
  kMXFP4 = 39,
};

SyntheticEncoding DenseOf(DType dtype) {
  SyntheticEncoding encoding;
  encoding.spec.kind = EncodingKind::kDense;
  encoding.spec.dtype = dtype;
  encoding.spec.bits = BitsOf(dtype);
  return encoding;
}

SyntheticEncoding AffineOf(int bits, std::int64_t group, OffsetKind offset, bool permuted = false) {
  SyntheticEncoding encoding;
  encoding.spec.kind = EncodingKind::kAffine;
  encoding.spec.bits = bits;
  encoding.spec.group = group;
  encoding.spec.scales = ScaleKind::kF16;
  encoding.spec.offset = offset;
  encoding.spec.permuted = permuted;
  return encoding;
}

SyntheticEncoding CodebookOf(const std::array<float, 16>& table) {
  SyntheticEncoding encoding;
  encoding.spec.kind = EncodingKind::kCodebook;
  encoding.spec.bits = 4;
  encoding.spec.group = 64;
  encoding.spec.scales = ScaleKind::kF32;
  encoding.table = table;
  return encoding;
}

SyntheticEncoding Row8Of(DType dtype, ActivationQuant activation) {
  SyntheticEncoding encoding;
  encoding.spec.kind = EncodingKind::kRow8;
  encoding.spec.dtype = dtype;
  encoding.spec.bits = 8;
  encoding.spec.scales = ScaleKind::kF32;
  encoding.spec.activation = activation;
  return encoding;
}

SyntheticFormatRow Gguf(const char* name, int body, int head, bool more_bits = false) {
  return {name, DType::kF16, {}, body, head, more_bits};
}

const std::vector<SyntheticFormatRow>& Rows() {
  constexpr auto kF16 = DType::kF16, kBF16 = DType::kBF16;
  constexpr auto kConstant = OffsetKind::kConstant, kZeros = OffsetKind::kZeroCodes;
  static const auto& rows = *new std::vector<SyntheticFormatRow>{
      {"f32", kF16, DenseOf(DType::kF32)},
      {"f16", kF16, DenseOf(kF16)},
      {"bf16", kBF16, DenseOf(kBF16)},
      // GPTQ: symmetric, one zero point for all.
      {"int4-g128", kF16, AffineOf(4, 128, kConstant)},
      {"int4-g64", kF16, AffineOf(4, 64, kConstant)},
      {"int4-g32", kF16, AffineOf(4, 32, kConstant)},
      {"int4-g128-act", kF16, AffineOf(4, 128, kConstant, /*permuted=*/true)},
      {"int8-g128", kF16, AffineOf(8, 128, kConstant)},
      {"int3-g128", kF16, AffineOf(3, 128, kConstant)},
      {"int2-g64", kF16, AffineOf(2, 64, kConstant)},
      {"awq", kF16, AffineOf(4, 128, kZeros)},
      {"nf4", kBF16, CodebookOf(kNf4Table)},
      {"fp4", kBF16, CodebookOf(kFp4Table)},
      {"int8", kF16, Row8Of(DType::kI8, ActivationQuant::kOutlierSplit)},  // LLM.int8()
      {"w8a8", kBF16, Row8Of(DType::kI8, ActivationQuant::kDynamic)},
      {"fp8", kBF16, Row8Of(DType::kF8E4M3, ActivationQuant::kDynamic)},
      Gguf("q4_0", kQ4_0, kQ6_K),
      Gguf("q4_1", kQ4_1, kQ6_K),
      Gguf("q5_0", kQ5_0, kQ6_K),
      Gguf("q5_1", kQ5_1, kQ6_K),
      Gguf("q8_0", kQ8_0, kQ8_0),
      Gguf("q2_k", kQ2_K, kQ6_K),
      Gguf("q3_k", kQ3_K, kQ6_K),
      Gguf("q4_k", kQ4_K, kQ6_K),
      Gguf("q4_k_m", kQ4_K, kQ6_K, /*more_bits=*/true),
      Gguf("q5_k", kQ5_K, kQ6_K),
      Gguf("q5_k_m", kQ5_K, kQ6_K, /*more_bits=*/true),
      Gguf("q6_k", kQ6_K, kQ6_K),
      Gguf("iq4_nl", kIQ4_NL, kQ6_K),
      Gguf("iq4_xs", kIQ4_XS, kQ6_K),
      Gguf("mxfp4", kMXFP4, kQ8_0),
  };
  return rows;
}

// Rows of blocks that do not divide k are written in a type that does.
int FittingType(int type, std::int64_t k) {
  const auto fits = [k](int wanted) { return k % FindGgmlType(wanted)->elements == 0; };
  constexpr std::pair<int, int> kSmaller[] = {{kQ2_K, kIQ4_NL}, {kQ3_K, kIQ4_NL},
                                              {kQ4_K, kQ5_0},   {kQ5_K, kQ5_1},
                                              {kQ6_K, kQ8_0},   {kIQ4_XS, kIQ4_NL}};
  if (fits(type)) return type;
  for (const auto& [from, to] : kSmaller) {
    if (from == type && fits(to)) return to;
  }
  return kGgmlF16;
}

// Of the first and the last eighth of the layers all, of those between every third.
bool TakesMoreBits(int layer, int layers) {
  const int eighth = layers / 8;
  return layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
}

SyntheticEncoding GgmlEncoding(int type) {
  const std::int64_t elements = FindGgmlType(type)->elements;
  SyntheticEncoding encoding;
  encoding.spec = GgmlSpec(type, 1, elements).value();  // of the table above: each is supported
  if (encoding.spec.kind != EncodingKind::kCodebook) return encoding;
  // The table is that of any block.
  HostBuffer block(static_cast<std::size_t>(FindGgmlType(type)->bytes));
  std::fill(block.bytes().begin(), block.bytes().end(), std::byte{0});
  const LinearWeight decoded = DecodeGgml(type, 1, elements, std::move(block)).value();
  encoding.table = std::get<Codebook>(decoded.encoding).table;
  return encoding;
}

int GgmlTypeOf(const SyntheticFormatRow& row, const SyntheticPlace& place) {
  const bool head = place.role == SyntheticRole::kHead ||
                    (place.role == SyntheticRole::kEmbedding && place.tied_head);
  if (place.role == SyntheticRole::kRouter) return kGgmlF32;
  if (head) return FittingType(row.ggml_head, place.k);
  const bool more = row.more_bits && place.role == SyntheticRole::kSensitive &&
                    TakesMoreBits(place.layer, place.layers);
  return FittingType(more ? kQ6_K : row.ggml_body, place.k);
}

}  // namespace

std::vector<std::string> SyntheticFormats() {
  std::vector<std::string> names;
  for (const SyntheticFormatRow& row : Rows()) names.emplace_back(row.name);
  return names;
}

const SyntheticFormatRow* FindSyntheticFormat(absl::string_view name) {
  for (const SyntheticFormatRow& row : Rows()) {
    if (name == row.name) return &row;
  }
  return nullptr;
}

SyntheticEncoding EncodingOf(const SyntheticFormatRow& row, const SyntheticPlace& place) {
  if (row.ggml_body >= 0) return GgmlEncoding(GgmlTypeOf(row, place));
  const bool body = place.role == SyntheticRole::kBody || place.role == SyntheticRole::kSensitive;
  SyntheticEncoding encoding =
      body || row.body.spec.kind == EncodingKind::kDense ? row.body : DenseOf(row.dtype);
  std::int64_t& group = encoding.spec.group;
  if (encoding.spec.kind == EncodingKind::kCodebook) group = GroupOfBlocks(place.k, group);
  if (encoding.spec.kind == EncodingKind::kAffine) {
    while (group > 1 && place.k % group != 0) group /= 2;
  }
  return encoding;
}

}  // namespace nibble
