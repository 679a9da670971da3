#include "runtime/device/cpu_linear.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/pack.h"
#include "runtime/base/overloaded.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

using cpu::kTileRows;
using cpu::NumberKind;

// Where the parts of one segment lie; -1: absent.
struct SegmentLayout {
  std::int64_t codes = -1;
  std::int64_t scales = -1, scale_codes = -1;
  std::int64_t zeros = -1;                       // ZeroCodes bytes, or Row8's f32 zeros
  std::int64_t addends = -1, addend_codes = -1;  // BiasOffset, TwoLevelOffset
  std::int64_t permutation = -1;
  std::int64_t bias = -1;
};

NumberKind NumbersOf(ScaleKind kind) {
  switch (kind) {
    case ScaleKind::kNone: return NumberKind::kNone;
    case ScaleKind::kF32: return NumberKind::kF32;
    case ScaleKind::kF16: return NumberKind::kF16;
    case ScaleKind::kBF16: return NumberKind::kBF16;
    case ScaleKind::kE8M0: return NumberKind::kE8M0;
    case ScaleKind::kTwoLevel: return NumberKind::kTwoLevel;
  }
  return NumberKind::kNone;
}

int BytesOf(NumberKind kind) {
  switch (kind) {
    case NumberKind::kNone: return 0;
    case NumberKind::kF32: return 4;
    case NumberKind::kF16:
    case NumberKind::kBF16: return 2;
    case NumberKind::kE8M0: return 1;
    case NumberKind::kTwoLevel: return 2;  // of the super-scale
  }
  return 0;
}

// The matrix a spec describes, its pointers still null.
absl::StatusOr<cpu::Matrix> MatrixOf(const LinearSpec& spec, DenseForm form) {
  cpu::Matrix m;
  m.n = spec.n;
  m.k = spec.k;
  m.group = spec.group;
  const auto unsupported = [&](absl::string_view what) {
    return absl::UnimplementedError(
        absl::StrCat("the cpu backend cannot run ", Describe(spec), " (", what, ")"));
  };
  if (spec.n < 1 || spec.k < 1) {
    return absl::InvalidArgumentError(absl::StrCat("a weight of ", spec.n, " by ", spec.k));
  }
  switch (spec.kind) {
    case EncodingKind::kDense:
      if (spec.dtype == DType::kF32)
        m.kind = cpu::CodeKind::kF32;
      else if (spec.dtype == DType::kF16)
        m.kind = cpu::CodeKind::kF16;
      else if (spec.dtype == DType::kBF16)
        m.kind = cpu::CodeKind::kBF16;
      else
        return unsupported(absl::StrCat("elements of type ", NameOf(spec.dtype)));
      m.group = spec.k;
      if (form == DenseForm::kRounded && m.kind != cpu::CodeKind::kF32) {
        m.kind = cpu::CodeKind::kI12;
        m.bits = 12;
        m.group = cpu::kDenseGroup;
      }
      break;
    case EncodingKind::kAffine:
      m.kind = cpu::CodeKind::kAffine;
      m.bits = spec.bits;
      if (spec.bits < 2 || spec.bits > 8 || spec.bits == 7)
        return unsupported(absl::StrCat(spec.bits, " bits"));
      break;
    case EncodingKind::kCodebook:
      m.kind = cpu::CodeKind::kCodebook;
      m.bits = 4;
      break;
    case EncodingKind::kRow8:
      m.kind = spec.dtype == DType::kI8 ? cpu::CodeKind::kI8 : cpu::CodeKind::kE4M3;
      if (spec.dtype != DType::kI8 && spec.dtype != DType::kF8E4M3) {
        return unsupported(absl::StrCat("codes of type ", NameOf(spec.dtype)));
      }
      if (spec.activation == ActivationQuant::kOutlierSplit && spec.dtype != DType::kI8) {
        return unsupported("outliers split from fp8");
      }
      m.bits = 8;
      m.group = spec.k;
      break;
  }
  if (m.group < 1)
    return absl::InvalidArgumentError(absl::StrCat(Describe(spec), ": group of ", m.group));
  m.groups = cpu::DivideUp(m.k, m.group);
  m.scale.kind = m.kind == cpu::CodeKind::kI12 ? NumberKind::kBF16 : NumbersOf(spec.scales);
  if (m.scale.kind == NumberKind::kNone && spec.kind != EncodingKind::kDense)
    return unsupported("no scales");
  if (m.scale.kind == NumberKind::kE8M0 && spec.kind != EncodingKind::kCodebook)
    return unsupported("E8M0 scales");
  cpu::SetShape(m);
  return m;
}

SegmentLayout LayOut(const LinearSpec& spec, const cpu::Matrix& m, MemoryLayout& memory) {
  SegmentLayout at;
  const std::int64_t rows = m.tiles * kTileRows;
  const auto take_two_level = [&](std::int64_t& numbers, std::int64_t& codes) {
    numbers = memory.Take(rows * cpu::DivideUp(m.groups, std::max(1, spec.groups_per_super)) * 2);
    codes = memory.Take(rows * m.groups);
  };
  at.codes = memory.Take(m.tiles * m.tile_bytes);
  if (m.scale.kind == NumberKind::kTwoLevel) {
    take_two_level(at.scales, at.scale_codes);
  } else if (m.scale.kind != NumberKind::kNone) {
    at.scales = memory.Take(rows * m.groups * BytesOf(m.scale.kind));
  }
  if (spec.kind == EncodingKind::kRow8) {
    if (spec.offset == OffsetKind::kZeroCodes) at.zeros = memory.Take(rows * 4);
  } else if (spec.offset == OffsetKind::kZeroCodes) {
    at.zeros = memory.Take(rows * m.groups);
  } else if (spec.offset == OffsetKind::kBias) {
    at.addends = memory.Take(rows * m.groups * BytesOf(m.scale.kind));
  } else if (spec.offset == OffsetKind::kTwoLevel) {
    take_two_level(at.addends, at.addend_codes);
  }
  if (spec.permuted) at.permutation = memory.Take(m.k * 4);
  if (spec.has_bias) at.bias = memory.Take(rows * 4);
  return at;
}

absl::Status CheckBytes(absl::string_view part, std::size_t have, std::int64_t want) {
  if (have == static_cast<std::size_t>(want)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(part, " has ", have, " bytes, not ", want));
}

// Writes one segment's parts into memory and points its matrix at them.
class SegmentPacker {
 public:
  SegmentPacker(const LinearWeight& weight, const LinearSpec& spec, const SegmentLayout& at,
                const HostMemory& memory, CpuSegment& segment)
      : weight_(weight),
        spec_(spec),
        at_(at),
        memory_(memory),
        segment_(segment),
        m_(segment.matrix) {}

  absl::Status Pack() {
    RETURN_IF_ERROR(std::visit([this](const auto& encoding) { return PackEncoding(encoding); },
                               weight_.encoding));
    if (weight_.bias.empty()) return absl::OkStatus();
    RETURN_IF_ERROR(CheckBytes("bias", weight_.bias.size() * 4, m_.n * 4));
    std::memcpy(memory_.At<float>(at_.bias), weight_.bias.data(), weight_.bias.size() * 4);
    m_.bias = memory_.At<float>(at_.bias);
    return absl::OkStatus();
  }

 private:
  absl::Status PackEncoding(const Dense& dense) {
    const int bytes = BitsOf(dense.dtype) / 8;
    RETURN_IF_ERROR(CheckBytes("elements", dense.data.size(), m_.n * m_.k * bytes));
    if (m_.kind == cpu::CodeKind::kI12) {
      PackRounded(dense);
      return absl::OkStatus();
    }
    m_.codes = PackTiles(dense.data, bytes, m_.k, at_.codes);
    return absl::OkStatus();
  }

  void PackRounded(const Dense& dense) {
    auto* scales = memory_.At<std::uint16_t>(at_.scales);
    cpu::PackDenseArgs args;
    args.elements = reinterpret_cast<const std::uint16_t*>(dense.data.data());
    args.bf16 = dense.dtype == DType::kBF16;
    args.n = m_.n;
    args.k = m_.k;
    static const cpu::KernelTable& kernels = cpu::KernelsOf(cpu::BestIsa());
    for (; args.tile < m_.tiles; ++args.tile) {
      args.codes = memory_.At<std::uint8_t>(at_.codes) + args.tile * m_.tile_bytes;
      args.scales = scales + args.tile * m_.groups * kTileRows;
      kernels.pack_dense(args);
    }
    m_.codes = memory_.At<std::uint8_t>(at_.codes);
    m_.scale.data = scales;
  }

  absl::Status PackEncoding(const Affine& affine) {
    RETURN_IF_ERROR(PackCodes(affine.codes, 0));
    RETURN_IF_ERROR(PackScales(affine.scales));
    RETURN_IF_ERROR(
        std::visit([this](const auto& offset) { return PackOffset(offset); }, affine.offset));
    return PackPermutation(affine.permutation);
  }

  absl::Status PackEncoding(const Codebook& book) {
    RETURN_IF_ERROR(PackCodes(book.codes, 0));
    std::copy(book.table.begin(), book.table.end(), m_.table);
    cpu::SetTable(m_);
    return PackScales(book.scales);
  }

  absl::Status PackEncoding(const Row8& row8) {
    RETURN_IF_ERROR(PackCodes(row8.codes, row8.dtype == DType::kI8 ? 0x80 : 0));
    if (row8.scales.size() != 1)
      RETURN_IF_ERROR(CheckBytes("scales", row8.scales.size() * 4, m_.n * 4));
    auto* scales = memory_.At<float>(at_.scales);
    for (std::int64_t row = 0; row < m_.n; ++row) {
      scales[row] = row8.scales[row8.scales.size() == 1 ? 0 : static_cast<std::size_t>(row)];
    }
    m_.scale.data = scales;
    if (!row8.zeros.empty()) {
      RETURN_IF_ERROR(CheckBytes("zeros", row8.zeros.size() * 4, m_.n * 4));
      auto* zeros = memory_.At<float>(at_.zeros);
      for (std::int64_t row = 0; row < m_.n; ++row) {
        zeros[row] = static_cast<float>(row8.zeros[static_cast<std::size_t>(row)]);
      }
      m_.row_zeros = zeros;
    }
    return SetActivation(row8);
  }

  absl::Status SetActivation(const Row8& row8) {
    const bool integer = row8.dtype == DType::kI8;
    switch (row8.activation) {
      case ActivationQuant::kNone: break;
      case ActivationQuant::kDynamic:
        segment_.activation = integer ? cpu::FakeQuant::kInt8Dynamic : cpu::FakeQuant::kE4M3Dynamic;
        break;
      case ActivationQuant::kStatic:
        if (!(row8.static_scale > 0.0f)) {
          return absl::InvalidArgumentError(absl::StrCat(
              "the static input scale is ", row8.static_scale, ", which is not positive"));
        }
        segment_.activation = integer ? cpu::FakeQuant::kInt8Static : cpu::FakeQuant::kE4M3Static;
        segment_.activation_scale = row8.static_scale;
        segment_.activation_zero = static_cast<float>(row8.static_zero);
        break;
      case ActivationQuant::kOutlierSplit:
        segment_.activation = cpu::FakeQuant::kOutlierSplit;
        segment_.outlier_threshold = row8.outlier_threshold;
        break;
    }
    return absl::OkStatus();
  }

  absl::Status PackCodes(const HostBuffer& codes, std::uint8_t flip) {
    const std::int64_t row_bytes = CodeRowBytes(m_.k, m_.bits);
    RETURN_IF_ERROR(CheckBytes("codes", codes.size(), m_.n * row_bytes));
    auto* out = memory_.At<std::uint8_t>(at_.codes);
    for (std::int64_t tile = 0; tile < m_.tiles; ++tile) {
      cpu::PackCodes(reinterpret_cast<const std::uint8_t*>(codes.data()), row_bytes, m_.bits, flip,
                     m_.n, m_.k, tile, out + tile * m_.tile_bytes);
    }
    m_.codes = out;
    return absl::OkStatus();
  }

  // [n, columns] row-major to [tile][column][16].
  const std::uint8_t* PackTiles(const HostBuffer& from, int element_bytes, std::int64_t columns,
                                std::int64_t at) {
    auto* out = memory_.At<std::uint8_t>(at);
    for (std::int64_t tile = 0; tile < m_.tiles; ++tile) {
      cpu::PackElements(from.data(), element_bytes, m_.n, columns, tile,
                        out + tile * columns * kTileRows * element_bytes);
    }
    return out;
  }

  absl::Status PackScales(const Scales& scales) {
    if (const auto* levels = std::get_if<TwoLevelScales>(&scales)) {
      return PackTwoLevel("scales", *levels, m_.scale, at_.scales, at_.scale_codes);
    }
    const auto& flat = std::get<FlatScales>(scales);
    return PackNumbers("scales", flat.data, BytesOf(m_.scale.kind), m_.scale, at_.scales);
  }

  absl::Status PackNumbers(absl::string_view part, const HostBuffer& data, int bytes,
                           cpu::GroupNumbers& numbers, std::int64_t at) {
    RETURN_IF_ERROR(CheckBytes(part, data.size(), m_.n * m_.groups * bytes));
    numbers.data = PackTiles(data, bytes, m_.groups, at);
    return absl::OkStatus();
  }

  absl::Status PackTwoLevel(absl::string_view part, const TwoLevelScales& levels,
                            cpu::GroupNumbers& numbers, std::int64_t at, std::int64_t codes_at) {
    if (levels.groups_per_super != spec_.groups_per_super || levels.groups_per_super < 1) {
      return absl::InvalidArgumentError(absl::StrCat(part, " have ", levels.groups_per_super,
                                                     " groups a super-group, not ",
                                                     spec_.groups_per_super));
    }
    numbers.kind = NumberKind::kTwoLevel;
    numbers.groups_per_super = levels.groups_per_super;
    numbers.supers = cpu::DivideUp(m_.groups, levels.groups_per_super);
    RETURN_IF_ERROR(CheckBytes(part, levels.super.size(), m_.n * numbers.supers * 2));
    RETURN_IF_ERROR(CheckBytes(part, levels.codes.size(), m_.n * m_.groups));
    numbers.data = PackTiles(levels.super, 2, numbers.supers, at);
    numbers.codes =
        reinterpret_cast<const std::int8_t*>(PackTiles(levels.codes, 1, m_.groups, codes_at));
    return absl::OkStatus();
  }

  absl::Status PackOffset(const ConstantOffset& offset) {
    m_.offset = cpu::OffsetForm::kConstant;
    m_.zero = static_cast<float>(offset.zero);
    return absl::OkStatus();
  }

  absl::Status PackOffset(const ZeroCodes& offset) {
    RETURN_IF_ERROR(CheckBytes("zeros", offset.zeros.size(), m_.n * m_.groups));
    m_.offset = cpu::OffsetForm::kZeroCodes;
    m_.zeros = PackTiles(offset.zeros, 1, m_.groups, at_.zeros);
    return absl::OkStatus();
  }

  absl::Status PackOffset(const BiasOffset& offset) {
    m_.offset = cpu::OffsetForm::kBias;
    m_.addend.kind = m_.scale.kind;
    const bool same = (offset.dtype == DType::kF16 && m_.scale.kind == NumberKind::kF16) ||
                      (offset.dtype == DType::kBF16 && m_.scale.kind == NumberKind::kBF16) ||
                      (offset.dtype == DType::kF32 && m_.scale.kind == NumberKind::kF32);
    if (!same) {
      return absl::InvalidArgumentError(
          absl::StrCat("offsets of type ", NameOf(offset.dtype), " beside scales of another type"));
    }
    return PackNumbers("offsets", offset.data, BytesOf(m_.scale.kind), m_.addend, at_.addends);
  }

  absl::Status PackOffset(const TwoLevelOffset& offset) {
    m_.offset = cpu::OffsetForm::kMinimum;
    return PackTwoLevel("minima", offset.minimum, m_.addend, at_.addends, at_.addend_codes);
  }

  absl::Status PackPermutation(const std::vector<std::int32_t>& permutation) {
    if (permutation.empty()) return absl::OkStatus();
    RETURN_IF_ERROR(CheckBytes("permutation", permutation.size() * 4, m_.k * 4));
    for (std::int32_t input : permutation) {
      if (input < 0 || input >= m_.k) {
        return absl::InvalidArgumentError(
            absl::StrCat("the permutation of ", m_.k, " inputs names ", input));
      }
    }
    std::memcpy(memory_.At<std::int32_t>(at_.permutation), permutation.data(),
                permutation.size() * 4);
    m_.permutation = memory_.At<std::int32_t>(at_.permutation);
    return absl::OkStatus();
  }

  const LinearWeight& weight_;
  const LinearSpec& spec_;
  const SegmentLayout& at_;
  const HostMemory& memory_;
  CpuSegment& segment_;
  cpu::Matrix& m_;
};

struct StackLayout {
  std::vector<cpu::Matrix> matrices;
  std::vector<SegmentLayout> segments;
  std::int64_t bytes = 0;
};

absl::StatusOr<StackLayout> LayOutStack(std::span<const LinearSpec> specs, PackAxis axis,
                                        DenseForm form) {
  if (specs.empty()) return absl::InvalidArgumentError("a stack of no weights");
  StackLayout stack;
  MemoryLayout memory;
  for (const LinearSpec& spec : specs) {
    if (spec.k != specs[0].k || (axis == PackAxis::kExperts && spec.n != specs[0].n)) {
      return absl::InvalidArgumentError(absl::StrCat("weights of ", spec.n, " by ", spec.k, " and ",
                                                     specs[0].n, " by ", specs[0].k,
                                                     " cannot be stacked"));
    }
    ASSIGN_OR_RETURN(cpu::Matrix matrix, MatrixOf(spec, form));
    stack.segments.push_back(LayOut(spec, matrix, memory));
    stack.matrices.push_back(matrix);
  }
  stack.bytes = HostMemory::Rounded(memory.total());
  return stack;
}

}  // namespace

absl::StatusOr<std::int64_t> CpuLinear::PackedBytes(std::span<const LinearSpec> specs,
                                                    PackAxis axis, DenseForm form) {
  ASSIGN_OR_RETURN(StackLayout stack, LayOutStack(specs, axis, form));
  return stack.bytes;
}

absl::StatusOr<std::unique_ptr<CpuLinear>> CpuLinear::Pack(std::span<const LinearWeight> weights,
                                                           PackAxis axis, DenseForm form) {
  std::vector<LinearSpec> specs;
  for (const LinearWeight& weight : weights) specs.push_back(SpecOf(weight));
  ASSIGN_OR_RETURN(StackLayout stack, LayOutStack(specs, axis, form));

  auto linear = std::make_unique<CpuLinear>();
  ASSIGN_OR_RETURN(linear->memory_, HostMemory::Allocate(stack.bytes));
  linear->axis_ = axis;
  linear->bytes = linear->memory_.size();
  linear->k = weights[0].k;
  std::int64_t row = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    CpuSegment& segment = linear->segments_.emplace_back();
    segment.matrix = stack.matrices[i];
    segment.row = axis == PackAxis::kExperts ? 0 : row;
    row += weights[i].n;
    RETURN_IF_ERROR(
        SegmentPacker(weights[i], specs[i], stack.segments[i], linear->memory_, segment).Pack());
    segment.integer = cpu::SupportsIntegers(segment.matrix);
    // Products prepare their input once where the order is one.
    const std::int32_t* order = linear->segments_[0].matrix.permutation;
    if (order != nullptr && segment.matrix.permutation != nullptr &&
        std::equal(order, order + segment.matrix.k, segment.matrix.permutation)) {
      segment.matrix.permutation = order;
    }
  }
  linear->n = axis == PackAxis::kExperts ? weights[0].n : row;
  return linear;
}

}  // namespace nibble
