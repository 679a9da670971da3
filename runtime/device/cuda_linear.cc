#include "runtime/device/cuda_linear.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda_rows.h"

namespace nibble {
namespace {

// Where the parts of a layer lie; all of it known from the specs alone. Matrices come first, each
// rounded up, so that those that turn out to be one product lie without a gap and still fit.
struct LayerLayout {
  std::vector<CudaForm> forms;
  std::vector<std::int64_t> matrices;  // byte of each, were it alone
  std::int64_t bias = -1;              // f32, of all rows
  std::vector<std::int64_t> orders;    // of each, -1: none
  std::int64_t bytes = 0;
};

absl::StatusOr<LayerLayout> LayOut(std::span<const LinearSpec> specs, PackAxis axis) {
  if (specs.empty()) return absl::InvalidArgumentError("a stack of no weights");
  LayerLayout layer;
  CudaLayout memory;
  std::int64_t rows = 0;
  bool biased = false;
  for (const LinearSpec& spec : specs) {
    if (spec.k != specs[0].k || (axis == PackAxis::kExperts && spec.n != specs[0].n)) {
      return absl::InvalidArgumentError(absl::StrCat("weights of ", spec.n, " by ", spec.k, " and ",
                                                     specs[0].n, " by ", specs[0].k,
                                                     " cannot be stacked"));
    }
    ASSIGN_OR_RETURN(CudaForm form, CudaFormOf(spec));
    layer.matrices.push_back(memory.Take(form.bytes()));
    layer.forms.push_back(form);
    rows += spec.n;
    biased = biased || spec.has_bias;
  }
  if (biased) layer.bias = memory.Take(rows * 4);
  for (const LinearSpec& spec : specs) {
    layer.orders.push_back(spec.permuted ? memory.Take(spec.k * 4) : -1);
  }
  layer.bytes = memory.total();
  return layer;
}

// Whether `b` below `a` is one matrix to the product kernels.
bool Joins(const CudaRows& a, const CudaRows& b) {
  if (a.form().kind != b.form().kind) return false;
  if (a.form().kind == CudaForm::Kind::kRow8 && a.code() != b.code()) return false;
  if (!a.form().dense()) {
    PackedShape shape = b.form().shape;
    shape.n = a.form().shape.n;
    if (shape != a.form().shape || a.form().shape.n % kTileRows != 0 || a.zero() != b.zero() ||
        a.table() != b.table()) {
      return false;
    }
  }
  return a.SameInputs(b);
}

// Packs the rows of some weights, one below the other, as one matrix.
class SegmentPacker {
 public:
  SegmentPacker(const CudaContext& context, std::span<const CudaRows> parts, bool alternates)
      : context_(context), parts_(parts), alternates_(alternates) {
    for (const CudaRows& part : parts_) n_ += part.n();
  }

  // `matrix` and `bias` (null: none) point into device memory.
  absl::Status Pack(CudaLane& lane, std::byte* matrix, float* bias, CudaSegment& segment) {
    const CudaRows& first = parts_.front();
    segment.dense = first.form().dense();
    segment.matrix.shape = first.form().shape;
    segment.matrix.shape.n = n_;
    segment.matrix.zero = first.zero();
    segment.matrix.table = first.table();
    first.SetRounding(segment);
    if (first.form().kind == CudaForm::Kind::kRow8) {
      RETURN_IF_ERROR(PackRow8(lane, reinterpret_cast<std::uint8_t*>(matrix), segment));
    } else if (segment.dense) {
      segment.weights = matrix;
      RETURN_IF_ERROR(PackDense(lane, matrix));
    } else {
      segment.matrix.blocks = reinterpret_cast<const std::uint8_t*>(matrix);
      RETURN_IF_ERROR(PackCodes(lane, reinterpret_cast<std::uint8_t*>(matrix), segment.matrix));
    }
    return PackBias(lane, bias, segment);
  }

 private:
  // The part and its row behind packed row `packed`.
  std::pair<const CudaRows*, std::int64_t> At(std::int64_t packed) const {
    std::int64_t row = SourceRow(packed, n_, alternates_);
    const CudaRows* part = parts_.data();
    while (row >= part->n()) row -= (part++)->n();
    return {part, row};
  }

  // body(first, count) for pieces of whole tiles whose rows of `row_bytes` fit a lane.
  template <typename Body>
  absl::Status ForPieces(std::int64_t row_bytes, const Body& body) const {
    const std::int64_t most = CudaLane::kHalfBytes / row_bytes / kTileRows * kTileRows;
    if (most == 0) {
      return absl::UnimplementedError(
          absl::StrCat("rows of ", row_bytes, " bytes are longer than the cuda backend loads"));
    }
    for (std::int64_t row = 0; row < n_; row += most)
      RETURN_IF_ERROR(body(row, std::min(most, n_ - row)));
    return absl::OkStatus();
  }

  absl::Status PackCodes(CudaLane& lane, std::uint8_t* blocks, cuda::PackedMatrix& matrix) const {
    const CudaForm& form = parts_.front().form();
    int exponent = 0;
    if (!std::all_of(parts_.begin(), parts_.end(),
                     [](const CudaRows& part) { return part.exact_in_half(); })) {
      float largest = 0.0f;
      for (const CudaRows& part : parts_) largest = std::max(largest, part.LargestNumber());
      exponent = HalfExponent(largest);
    }
    matrix.multiplier = PowerOfTwo(exponent);
    const bool tables = form.shape.offset != OffsetMode::kConstant;
    const std::int64_t code_bytes = CodeRowBytes(form.shape.k, form.shape.bits);
    const std::int64_t number_bytes = form.groups * 4;
    return ForPieces(code_bytes + number_bytes * (tables ? 2 : 1), [&](std::int64_t first,
                                                                       std::int64_t count) {
      const std::int64_t offsets_at = count * number_bytes;
      const std::int64_t codes_at = offsets_at * (tables ? 2 : 1);
      const auto fill = [&](std::byte* host) {
        for (std::int64_t i = 0; i < count; ++i) {
          const auto [part, row] = At(first + i);
          part->Scales(row, reinterpret_cast<float*>(host + i * number_bytes));
          if (tables)
            part->Offsets(row, reinterpret_cast<float*>(host + offsets_at + i * number_bytes));
          part->Codes(row, reinterpret_cast<std::uint8_t*>(host + codes_at + i * code_bytes));
        }
      };
      const auto pack = [&](std::byte* device, cudaStream_t stream) {
        RowSource source;
        source.codes = reinterpret_cast<const std::uint8_t*>(device + codes_at);
        source.row_bytes = code_bytes;
        source.scales = reinterpret_cast<const float*>(device);
        if (tables) source.offsets = reinterpret_cast<const float*>(device + offsets_at);
        source.file_group = form.file_group;
        source.groups = form.groups;
        source.scale_exponent = exponent;
        PackedShape piece = form.shape;
        piece.n = count;
        return cuda::PackBlocks(
            piece, source, blocks + first / kTileRows * piece.Units() * piece.BlockBytes(), stream);
      };
      return lane.Send(codes_at + count * code_bytes, fill, pack);
    });
  }

  absl::Status PackDense(CudaLane& lane, std::byte* out) const {
    const std::int64_t k = parts_.front().form().shape.k;
    const CudaRows& first_part = parts_.front();
    const bool e4m3 = first_part.form().kind == CudaForm::Kind::kE4m3;
    const std::int64_t row_bytes = e4m3 ? k : k * BitsOf(first_part.element()) / 8;
    const std::int64_t scale_bytes = e4m3 ? 4 : 0;
    return ForPieces(row_bytes + scale_bytes, [&](std::int64_t first, std::int64_t count) {
      const std::int64_t rows_at = count * scale_bytes;
      const auto fill = [&](std::byte* host) {
        for (std::int64_t i = 0; i < count; ++i) {
          const auto [part, row] = At(first + i);
          if (e4m3) part->Scales(row, reinterpret_cast<float*>(host + i * scale_bytes));
          part->Elements(row, host + rows_at + i * row_bytes);
        }
      };
      const auto pack = [&](std::byte* device, cudaStream_t stream) {
        std::byte* to = out + first * k * 2;
        const cuda::LaunchOptions options{stream, false};
        if (e4m3) {
          return cuda::ExpandE4m3(context_.dtype, to,
                                  reinterpret_cast<const std::uint8_t*>(device + rows_at),
                                  reinterpret_cast<const float*>(device), count, k, options);
        }
        return cuda::Convert(context_.dtype, to, first_part.element(), device, count * k, options);
      };
      return lane.Send(rows_at + count * row_bytes, fill, pack);
    });
  }

  // Codes of all rows, then their scales, then offsets.
  absl::Status PackRow8(CudaLane& lane, std::uint8_t* codes, CudaSegment& segment) const {
    const std::int64_t k = segment.matrix.shape.k;
    auto* scales = reinterpret_cast<float*>(codes + n_ * k);
    float* offsets = scales + n_;
    segment.row8 = {parts_.front().code(), codes, scales, segment.zero != 0.0f ? offsets : nullptr};
    return ForPieces(k + 8, [&](std::int64_t first, std::int64_t count) {
      const auto fill = [&](std::byte* host) {
        auto* numbers = reinterpret_cast<float*>(host + count * k);
        for (std::int64_t i = 0; i < count; ++i) {
          const auto [part, row] = At(first + i);
          part->Elements(row, host + i * k);
          part->Scales(row, numbers + i);
          numbers[count + i] = part->InputOffset(row);
        }
      };
      const auto pack = [&](std::byte* device, cudaStream_t stream) {
        const std::byte* from = device;
        const auto copy = [&](void* to, std::int64_t bytes) {
          const cudaError_t error = cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes),
                                                    cudaMemcpyDeviceToDevice, stream);
          from += bytes;
          return error;
        };
        cudaError_t error = copy(codes + first * k, count * k);
        if (error == cudaSuccess) error = copy(scales + first, count * 4);
        if (error == cudaSuccess) error = copy(offsets + first, count * 4);
        return error;
      };
      return lane.Send(count * (k + 8), fill, pack);
    });
  }

  absl::Status PackBias(CudaLane& lane, float* bias, CudaSegment& segment) const {
    if (std::all_of(parts_.begin(), parts_.end(),
                    [](const CudaRows& part) { return part.bias().empty(); })) {
      return absl::OkStatus();
    }
    segment.bias = bias;
    return ForPieces(4, [&](std::int64_t first, std::int64_t count) {
      const auto fill = [&](std::byte* host) {
        for (std::int64_t i = 0; i < count; ++i) {
          const auto [part, row] = At(first + i);
          reinterpret_cast<float*>(host)[i] =
              part->bias().empty() ? 0.0f : part->bias()[static_cast<std::size_t>(row)];
        }
      };
      const auto pack = [&](std::byte* device, cudaStream_t stream) {
        return cudaMemcpyAsync(bias + first, device, static_cast<std::size_t>(count) * 4,
                               cudaMemcpyDeviceToDevice, stream);
      };
      return lane.Send(count * 4, fill, pack);
    });
  }

  const CudaContext& context_;
  const std::span<const CudaRows> parts_;
  const bool alternates_;
  std::int64_t n_ = 0;
};

absl::Status PackOrder(CudaLane& lane, const std::vector<std::int32_t>& order, std::int32_t* to) {
  const auto bytes = static_cast<std::int64_t>(order.size()) * 4;
  const auto fill = [&](std::byte* host) {
    std::memcpy(host, order.data(), static_cast<std::size_t>(bytes));
  };
  return lane.Send(bytes, fill, [&](std::byte* device, cudaStream_t stream) {
    return cudaMemcpyAsync(to, device, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice,
                           stream);
  });
}

}  // namespace

absl::StatusOr<std::int64_t> CudaLinear::PackedBytes(std::span<const LinearSpec> specs,
                                                     PackAxis axis) {
  ASSIGN_OR_RETURN(LayerLayout layer, LayOut(specs, axis));
  return layer.bytes;
}

absl::StatusOr<std::int64_t> CudaLinear::ExpandedBytes(std::span<const LinearSpec> specs) {
  std::int64_t bytes = 0;
  for (const LinearSpec& spec : specs) {
    ASSIGN_OR_RETURN(const CudaForm form, CudaFormOf(spec));
    if (form.kind == CudaForm::Kind::kPacked) bytes += 2 * spec.n * spec.k;
  }
  return CudaLayout::Rounded(bytes);
}

std::int64_t CudaLinear::expanded_bytes() const {
  std::int64_t all = 0;
  for (const CudaSegment& segment : segments_) {
    if (segment.packed()) all += 2 * segment.matrix.shape.n * segment.matrix.shape.k;
  }
  return CudaLayout::Rounded(all);
}

absl::Status CudaLinear::Expand(DType dtype, std::byte* to, cudaStream_t stream) {
  for (CudaSegment& segment : segments_) {
    if (!segment.packed()) continue;
    RETURN_IF_ERROR(
        CudaError(cuda::DequantizePacked(segment.matrix, dtype, to, stream), "expanding weights"));
    segment.weights = to;
    to += 2 * segment.matrix.shape.n * segment.matrix.shape.k;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CudaLinear>> CudaLinear::Pack(CudaContext& context,
                                                             std::span<const LinearWeight> weights,
                                                             PackAxis axis) {
  RETURN_IF_ERROR(CudaError(cudaSetDevice(context.device), "choosing the device"));
  std::vector<LinearSpec> specs;
  for (const LinearWeight& weight : weights) {
    RETURN_IF_ERROR(CheckBuffers(weight));
    specs.push_back(SpecOf(weight));
  }
  ASSIGN_OR_RETURN(LayerLayout layer, LayOut(specs, axis));
  std::vector<CudaRows> rows;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    ASSIGN_OR_RETURN(CudaRows each, CudaRows::Of(weights[i], layer.forms[i]));
    rows.push_back(std::move(each));
  }

  auto linear = std::make_unique<CudaLinear>();
  ASSIGN_OR_RETURN(linear->memory_, context.arena.Allocate(layer.bytes));
  std::byte* memory = linear->memory_.data;
  linear->bytes = layer.bytes;
  linear->k = weights[0].k;
  std::int64_t total = 0;
  for (const LinearWeight& weight : weights) total += weight.n;
  linear->n = axis == PackAxis::kExperts ? weights[0].n : total;

  const absl::Status packed = context.lanes.With([&](CudaLane& lane) {
    std::int64_t row = 0;
    for (std::size_t begin = 0, end; begin < rows.size(); begin = end) {
      end = begin + 1;
      while (end < rows.size() && Joins(rows[end - 1], rows[end])) ++end;
      const bool whole = begin == 0 && end == rows.size();
      linear->alternates_ = axis == PackAxis::kGateUp && whole && total % (2 * kTileRows) == 0;
      CudaSegment& segment = linear->segments_.emplace_back();
      segment.row = axis == PackAxis::kExperts ? 0 : row;
      segment.parts = static_cast<int>(end - begin);
      float* bias = layer.bias < 0 ? nullptr : reinterpret_cast<float*>(memory + layer.bias) + row;
      SegmentPacker packer(context, std::span(rows).subspan(begin, end - begin),
                           linear->alternates_);
      RETURN_IF_ERROR(packer.Pack(lane, memory + layer.matrices[begin], bias, segment));
      if (!rows[begin].order().empty()) {
        auto* order = reinterpret_cast<std::int32_t*>(memory + layer.orders[begin]);
        segment.order = order;
        RETURN_IF_ERROR(PackOrder(lane, rows[begin].order(), order));
      }
      for (std::size_t i = begin; i < end; ++i) row += rows[i].n();
    }
    return lane.Finish();
  });
  RETURN_IF_ERROR(packed);
  return linear;
}

CudaSegment CudaLinear::Expert(int expert) const {
  const CudaSegment* from = segments_.data();
  while (expert >= from->parts) expert -= (from++)->parts;
  CudaSegment one = *from;
  one.parts = 1;
  one.matrix.shape.n = n;
  if (one.is_row8()) {
    one.row8.codes += expert * n * k;
    one.row8.scales += expert * n;
    if (one.row8.offsets != nullptr) one.row8.offsets += expert * n;
  } else if (one.dense) {
    one.weights = static_cast<const std::byte*>(from->weights) + expert * n * k * 2;
  } else {
    one.matrix.blocks = from->matrix.blocks + expert * one.matrix.shape.Bytes();
  }
  if (one.bias != nullptr) one.bias += expert * n;
  return one;
}

}  // namespace nibble
