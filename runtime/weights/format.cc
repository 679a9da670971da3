#include "runtime/weights/format.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"
#include "runtime/weights/formats.h"
#include "runtime/weights/quantize_at_load.h"

namespace nibble {
namespace {

// `method` is what ReadQuantConfig calls it. A format of several names has several rows.
struct FormatRow {
  const char* method;
  OpenedFormat (*open)(const Checkpoint&, const QuantConfig&);
};

constexpr FormatRow kFormats[] = {
    {"", OpenDense},
    {"gguf", OpenGgufFormat},
    {"gptq", OpenGptq},
    {"auto-round", OpenAutoRound},
    {"intel/auto-round", OpenAutoRound},
    {"awq", OpenAwq},
    {"bitsandbytes", OpenBitsandbytes},
    {"compressed-tensors", OpenCompressedTensors},
    {"fp8", OpenFp8},
    {"fbgemm_fp8", OpenFp8},
};

// Whether most bytes are floats of 16 or 32 bits.
bool HoldsFloats(const Checkpoint& checkpoint) {
  std::uint64_t floats = 0;
  std::uint64_t all = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    const bool is_float =
        tensor.dtype == DType::kF32 || tensor.dtype == DType::kF16 || tensor.dtype == DType::kBF16;
    all += tensor.bytes;
    floats += is_float ? tensor.bytes : 0;
  }
  return floats > all / 2;
}

absl::Status UnknownMethod(const Checkpoint& checkpoint, const std::string& method) {
  std::vector<absl::string_view> known;
  for (const FormatRow& row : kFormats) {
    if (row.method[0] != '\0') known.push_back(row.method);
  }
  return absl::UnimplementedError(
      absl::StrCat(checkpoint.path(), " is quantized by \"", method.substr(0, 64),
                   "\", which is not supported; supported are unquantized weights and ",
                   absl::StrJoin(known, ", "), ": convert the model to one of these"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightFormat>> OpenFormat(const Checkpoint& checkpoint,
                                                         LoadQuantization quantize) {
  ASSIGN_OR_RETURN(const QuantConfig quant, ReadQuantConfig(checkpoint));
  for (const FormatRow& row : kFormats) {
    if (quant.method != row.method) continue;
    ASSIGN_OR_RETURN(std::unique_ptr<WeightFormat> format, row.open(checkpoint, quant));
    if (quantize == LoadQuantization::kNone) return format;
    if (!HoldsFloats(checkpoint)) {
      return absl::InvalidArgumentError(absl::StrCat(
          checkpoint.path(), " is ", format->Name(),
          ": only 16- and 32-bit weights are quantized at load; leave --quantize out"));
    }
    return QuantizeAtLoad(std::move(format), quantize);
  }
  return UnknownMethod(checkpoint, quant.method);
}

}  // namespace nibble
