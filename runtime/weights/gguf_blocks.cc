#include "runtime/weights/gguf_blocks.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/weights/code_rows.h"
#include "runtime/weights/gguf.h"

namespace nibble {
namespace {

// One block taken apart. Which members a type fills, its row of the table says.
struct Block {
  std::uint8_t codes[256];
  std::int8_t scales[16];  // small codes under `d`
  std::int8_t minima[16];  // small codes under `m`
  std::uint16_t d;         // f16; E8M0 for MXFP4
  std::uint16_t m;         // f16
};

std::uint16_t Half(const std::uint8_t* at) {
  return static_cast<std::uint16_t>(at[0] | at[1] << 8);
}

// A block of 32 keeps elements 0..15 in the low nibbles and 16..31 in the high ones.
void HalvesOf16(const std::uint8_t* qs, std::uint8_t* codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = qs[j] & 15;
    codes[j + 16] = qs[j] >> 4;
  }
}

// The fifth bits of 32 elements.
void AddHighBits(const std::uint8_t* at, std::uint8_t* codes) {
  std::uint32_t high = 0;
  std::memcpy(&high, at, 4);
  for (int i = 0; i < 32; ++i) codes[i] |= static_cast<std::uint8_t>(((high >> i) & 1) << 4);
}

void DecodeQ4_0(const std::uint8_t* in, Block& out) {
  out.d = Half(in);
  HalvesOf16(in + 2, out.codes);
}

void DecodeQ4_1(const std::uint8_t* in, Block& out) {
  out.d = Half(in);
  out.m = Half(in + 2);
  HalvesOf16(in + 4, out.codes);
}

void DecodeQ5_0(const std::uint8_t* in, Block& out) {
  out.d = Half(in);
  HalvesOf16(in + 6, out.codes);
  AddHighBits(in + 2, out.codes);
}

void DecodeQ5_1(const std::uint8_t* in, Block& out) {
  out.d = Half(in);
  out.m = Half(in + 2);
  HalvesOf16(in + 8, out.codes);
  AddHighBits(in + 4, out.codes);
}

// Signed bytes, moved up by 128.
void DecodeQ8_0(const std::uint8_t* in, Block& out) {
  out.d = Half(in);
  for (int i = 0; i < 32; ++i) out.codes[i] = in[2 + i] ^ 0x80;
}

// 2-bit codes of Q2_K and Q3_K: of 128 elements, j = 0..3 sets of 32 share 32 bytes.
void TwoBits(const std::uint8_t* qs, std::uint8_t* codes) {
  for (int set = 0; set < 8; ++set) {
    const std::uint8_t* bytes = qs + set / 4 * 32;
    for (int l = 0; l < 32; ++l) codes[32 * set + l] = (bytes[l] >> (set % 4 * 2)) & 3;
  }
}

void DecodeQ2_K(const std::uint8_t* in, Block& out) {
  TwoBits(in + 16, out.codes);
  for (int t = 0; t < 16; ++t) {
    out.scales[t] = static_cast<std::int8_t>(in[t] & 15);
    out.minima[t] = static_cast<std::int8_t>(in[t] >> 4);
  }
  out.d = Half(in + 80);
  out.m = Half(in + 82);
}

// The third bit of element i lies in hmask[i % 32], bit i / 32; a clear one subtracts 4.
void DecodeQ3_K(const std::uint8_t* in, Block& out) {
  TwoBits(in + 32, out.codes);
  for (int set = 0; set < 8; ++set) {
    for (int l = 0; l < 32; ++l) out.codes[32 * set + l] |= ((in[l] >> set) & 1) << 2;
  }
  const std::uint8_t* scales = in + 96;
  for (int t = 0; t < 16; ++t) {
    const int low = t < 8 ? scales[t] & 15 : scales[t - 8] >> 4;
    const int high = (scales[8 + t % 4] >> (t / 4 * 2)) & 3;
    out.scales[t] = static_cast<std::int8_t>((low | high << 4) - 32);
  }
  out.d = Half(in + 108);
}

// Eight 6-bit scales and eight 6-bit minima in 12 bytes (Q4_K, Q5_K).
void SixBitScales(const std::uint8_t* s, Block& out) {
  for (int j = 0; j < 4; ++j) {
    out.scales[j] = static_cast<std::int8_t>(s[j] & 63);
    out.minima[j] = static_cast<std::int8_t>(s[j + 4] & 63);
    out.scales[j + 4] = static_cast<std::int8_t>((s[j + 8] & 15) | (s[j] >> 6) << 4);
    out.minima[j + 4] = static_cast<std::int8_t>((s[j + 8] >> 4) | (s[j + 4] >> 6) << 4);
  }
}

// 64 elements share 32 bytes: the first 32 are low nibbles.
void NibblesOf64(const std::uint8_t* qs, std::uint8_t* codes) {
  for (int set = 0; set < 8; ++set) {
    const std::uint8_t* bytes = qs + set / 2 * 32;
    for (int l = 0; l < 32; ++l) codes[32 * set + l] = (bytes[l] >> (set % 2 * 4)) & 15;
  }
}

void DecodeQ4_K(const std::uint8_t* in, Block& out) {
  out.d = Half(in);
  out.m = Half(in + 2);
  SixBitScales(in + 4, out);
  NibblesOf64(in + 16, out.codes);
}

void DecodeQ5_K(const std::uint8_t* in, Block& out) {
  out.d = Half(in);
  out.m = Half(in + 2);
  SixBitScales(in + 4, out);
  NibblesOf64(in + 48, out.codes);
  for (int set = 0; set < 8; ++set) {
    for (int l = 0; l < 32; ++l) out.codes[32 * set + l] |= ((in[16 + l] >> set) & 1) << 4;
  }
}

void DecodeQ6_K(const std::uint8_t* in, Block& out) {
  for (int set = 0; set < 8; ++set) {
    const int half = set / 4;
    const int t = set % 4;
    const std::uint8_t* low = in + 64 * half + 32 * (t & 1);
    const std::uint8_t* high = in + 128 + 32 * half;
    for (int l = 0; l < 32; ++l) {
      out.codes[32 * set + l] = static_cast<std::uint8_t>(((low[l] >> (t / 2 * 4)) & 15) |
                                                          ((high[l] >> (2 * t)) & 3) << 4);
    }
  }
  std::memcpy(out.scales, in + 192, 16);
  out.d = Half(in + 208);
}

void DecodeIQ4_XS(const std::uint8_t* in, Block& out) {
  out.d = Half(in);
  const int scales_h = Half(in + 2);
  for (int b = 0; b < 8; ++b) {
    const int low = (in[4 + b / 2] >> (b % 2 * 4)) & 15;
    const int high = (scales_h >> (2 * b)) & 3;
    out.scales[b] = static_cast<std::int8_t>((low | high << 4) - 32);
    HalvesOf16(in + 8 + 16 * b, out.codes + 32 * b);
  }
}

// Five ternary digits a byte, most significant first, as a fraction of 256.
void DecodeTQ1_0(const std::uint8_t* in, Block& out) {
  static constexpr int kPowers[] = {1, 3, 9, 27, 81};
  struct Run {
    int begin, bytes, digits;
  };
  std::uint8_t* code = out.codes;
  for (const Run run : {Run{0, 32, 5}, Run{32, 16, 5}, Run{48, 4, 4}}) {
    for (int digit = 0; digit < run.digits; ++digit) {
      for (int j = 0; j < run.bytes; ++j) {
        const int fraction = in[run.begin + j] * kPowers[digit] & 255;
        *code++ = static_cast<std::uint8_t>(fraction * 3 >> 8);
      }
    }
  }
  out.d = Half(in + 52);
}

void DecodeTQ2_0(const std::uint8_t* in, Block& out) {
  TwoBits(in, out.codes);
  out.d = Half(in + 64);
}

void DecodeMXFP4(const std::uint8_t* in, Block& out) {
  out.d = in[0];
  HalvesOf16(in + 1, out.codes);
}

constexpr std::array<float, 16> kIq4Table = {-127, -104, -83, -65, -49, -35, -22, -10,
                                             1,    13,   25,  38,  53,  69,  89,  113};
constexpr std::array<float, 16> kMxfp4Table = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,
                                               4.0f,  6.0f,  -0.0f, -0.5f, -1.0f, -1.5f,
                                               -2.0f, -3.0f, -4.0f, -6.0f};

// How the blocks of one type become an encoding.
struct BlockType {
  int ggml_type;
  void (*decode)(const std::uint8_t*, Block&);
  int bits;
  std::int64_t group;
  ScaleKind scales;   // kF16, kE8M0 or kTwoLevel
  OffsetKind offset;  // kNone: a codebook
  int zero = 0;       // of kConstant
  const std::array<float, 16>* table = nullptr;
};

constexpr BlockType kBlockTypes[] = {
    {2, DecodeQ4_0, 4, 32, ScaleKind::kF16, OffsetKind::kConstant, 8},
    {3, DecodeQ4_1, 4, 32, ScaleKind::kF16, OffsetKind::kBias},
    {6, DecodeQ5_0, 5, 32, ScaleKind::kF16, OffsetKind::kConstant, 16},
    {7, DecodeQ5_1, 5, 32, ScaleKind::kF16, OffsetKind::kBias},
    {8, DecodeQ8_0, 8, 32, ScaleKind::kF16, OffsetKind::kConstant, 128},
    {10, DecodeQ2_K, 2, 16, ScaleKind::kTwoLevel, OffsetKind::kTwoLevel},
    {11, DecodeQ3_K, 3, 16, ScaleKind::kTwoLevel, OffsetKind::kConstant, 4},
    {12, DecodeQ4_K, 4, 32, ScaleKind::kTwoLevel, OffsetKind::kTwoLevel},
    {13, DecodeQ5_K, 5, 32, ScaleKind::kTwoLevel, OffsetKind::kTwoLevel},
    {14, DecodeQ6_K, 6, 16, ScaleKind::kTwoLevel, OffsetKind::kConstant, 32},
    {20, DecodeQ4_0, 4, 32, ScaleKind::kF16, OffsetKind::kNone, 0, &kIq4Table},
    {23, DecodeIQ4_XS, 4, 32, ScaleKind::kTwoLevel, OffsetKind::kNone, 0, &kIq4Table},
    {34, DecodeTQ1_0, 2, 256, ScaleKind::kF16, OffsetKind::kConstant, 1},
    {35, DecodeTQ2_0, 2, 256, ScaleKind::kF16, OffsetKind::kConstant, 1},
    {39, DecodeMXFP4, 4, 32, ScaleKind::kE8M0, OffsetKind::kNone, 0, &kMxfp4Table},
};

const BlockType* FindBlockType(int ggml_type) {
  for (const BlockType& type : kBlockTypes) {
    if (type.ggml_type == ggml_type) return &type;
  }
  return nullptr;
}

bool IsFloat(const GgmlType& type) {
  return type.dtype == DType::kF32 || type.dtype == DType::kF16 || type.dtype == DType::kBF16;
}

// The buffers of the result while blocks are written into them.
struct Parts {
  HostBuffer codes;   // packed rows
  HostBuffer scales;  // flat: one a group; two-level: the supers
  HostBuffer scale_codes;
  HostBuffer offsets;  // bias: f16 a group; two-level: the supers
  HostBuffer offset_codes;
};

// Infinities and NaN would spread to every output: a damaged file, refused while it is read.
absl::Status CheckBlock(const BlockType& type, const Block& block, std::int64_t index) {
  const bool has_half = type.scales != ScaleKind::kE8M0;
  const bool has_minimum = type.offset == OffsetKind::kBias || type.offset == OffsetKind::kTwoLevel;
  if ((has_half && (block.d & 0x7c00) == 0x7c00) || (has_minimum && (block.m & 0x7c00) == 0x7c00)) {
    return absl::InvalidArgumentError(
        absl::StrCat("block ", index, " has a scale that is infinite or not a number"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Parts> DecodeBlocks(const BlockType& type, const GgmlType& ggml, std::int64_t n,
                                   std::int64_t k, const HostBuffer& raw) {
  const std::int64_t blocks = n * (k / ggml.elements);
  const std::int64_t groups = ggml.elements / type.group;  // of one block
  const bool two_level = type.scales == ScaleKind::kTwoLevel;
  const std::int64_t scale_bytes = type.scales == ScaleKind::kE8M0 ? 1 : 2;
  const std::int64_t code_bytes = ggml.elements * type.bits / 8;
  Parts parts;
  parts.codes = HostBuffer(static_cast<std::size_t>(blocks * code_bytes));
  parts.scales = HostBuffer(static_cast<std::size_t>(blocks * scale_bytes));
  if (two_level) parts.scale_codes = HostBuffer(static_cast<std::size_t>(blocks * groups));
  if (type.offset == OffsetKind::kBias || type.offset == OffsetKind::kTwoLevel) {
    parts.offsets = HostBuffer(static_cast<std::size_t>(blocks * 2));
  }
  if (type.offset == OffsetKind::kTwoLevel) {
    parts.offset_codes = HostBuffer(static_cast<std::size_t>(blocks * groups));
  }
  const auto* in = reinterpret_cast<const std::uint8_t*>(raw.data());
  Block block{};
  for (std::int64_t b = 0; b < blocks; ++b, in += ggml.bytes) {
    type.decode(in, block);
    RETURN_IF_ERROR(CheckBlock(type, block, b));
    PackCodes(block.codes, type.bits, ggml.elements, parts.codes.data() + b * code_bytes);
    std::memcpy(parts.scales.data() + b * scale_bytes, &block.d,
                static_cast<std::size_t>(scale_bytes));
    if (two_level) {
      std::memcpy(parts.scale_codes.data() + b * groups, block.scales,
                  static_cast<std::size_t>(groups));
    }
    if (!parts.offsets.empty()) std::memcpy(parts.offsets.data() + b * 2, &block.m, 2);
    if (!parts.offset_codes.empty()) {
      std::memcpy(parts.offset_codes.data() + b * groups, block.minima,
                  static_cast<std::size_t>(groups));
    }
  }
  return parts;
}

}  // namespace

absl::StatusOr<LinearSpec> GgmlSpec(int ggml_type, std::int64_t n, std::int64_t k) {
  const GgmlType* ggml = FindGgmlType(ggml_type);
  const BlockType* type = FindBlockType(ggml_type);
  if (ggml == nullptr || (type == nullptr && !IsFloat(*ggml))) {
    return absl::UnimplementedError(
        absl::StrCat("ggml type ", ggml == nullptr ? absl::StrCat(ggml_type) : ggml->name,
                     " cannot be served; requantize to Q4_K, Q8_0 or another supported type"));
  }
  LinearSpec spec;
  spec.n = n;
  spec.k = k;
  if (type == nullptr) {
    spec.kind = EncodingKind::kDense;
    spec.dtype = ggml->dtype;
    spec.bits = BitsOf(ggml->dtype);
    return spec;
  }
  spec.kind = type->table == nullptr ? EncodingKind::kAffine : EncodingKind::kCodebook;
  spec.bits = type->bits;
  spec.group = type->group;
  spec.scales = type->scales;
  spec.offset = type->offset;
  if (type->scales == ScaleKind::kTwoLevel) {
    spec.groups_per_super = static_cast<int>(ggml->elements / type->group);
  }
  return spec;
}

absl::StatusOr<LinearWeight> DecodeGgml(int ggml_type, std::int64_t n, std::int64_t k,
                                        HostBuffer raw) {
  ASSIGN_OR_RETURN(const LinearSpec spec, GgmlSpec(ggml_type, n, k));
  const GgmlType& ggml = *FindGgmlType(ggml_type);
  if (k % ggml.elements != 0 ||
      raw.size() != static_cast<std::size_t>(n * (k / ggml.elements) * ggml.bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat(raw.size(), " bytes are not a matrix [", n, ", ", k, "] of ", ggml.name));
  }
  LinearWeight weight;
  weight.n = n;
  weight.k = k;
  if (spec.kind == EncodingKind::kDense) {
    weight.encoding = Dense{ggml.dtype, std::move(raw)};
    return weight;
  }
  const BlockType& type = *FindBlockType(ggml_type);
  ASSIGN_OR_RETURN(Parts parts, DecodeBlocks(type, ggml, n, k, raw));
  Scales scales;
  if (type.scales == ScaleKind::kTwoLevel) {
    scales = TwoLevelScales{std::move(parts.scales), std::move(parts.scale_codes),
                            spec.groups_per_super};
  } else {
    const DType dtype = type.scales == ScaleKind::kE8M0 ? DType::kF8E8M0 : DType::kF16;
    scales = FlatScales{dtype, std::move(parts.scales)};
  }
  if (type.table != nullptr) {
    weight.encoding = Codebook{*type.table, type.group, std::move(parts.codes), std::move(scales)};
    return weight;
  }
  Offset offset = ConstantOffset{type.zero};
  if (type.offset == OffsetKind::kBias) offset = BiasOffset{DType::kF16, std::move(parts.offsets)};
  if (type.offset == OffsetKind::kTwoLevel) {
    offset = TwoLevelOffset{
        {std::move(parts.offsets), std::move(parts.offset_codes), spec.groups_per_super}};
  }
  weight.encoding = Affine{type.bits,         type.group,        std::move(parts.codes),
                           std::move(scales), std::move(offset), {}};
  return weight;
}

}  // namespace nibble
