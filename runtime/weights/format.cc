#include "runtime/weights/format.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"
#include "runtime/weights/formats.h"

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
};

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
    if (quantize != LoadQuantization::kNone) {
      return absl::UnimplementedError("quantization at load is not built in");
    }
    return row.open(checkpoint, quant);
  }
  return UnknownMethod(checkpoint, quant.method);
}

}  // namespace nibble
