#include "runtime/weights/safetensors.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "runtime/base/json.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

std::optional<DType> DTypeNamed(absl::string_view name) {
  for (int i = 0; i <= static_cast<int>(DType::kF6E3M2); ++i) {
    const auto dtype = static_cast<DType>(i);
    if (name == NameOf(dtype)) return dtype;
  }
  return std::nullopt;
}

absl::StatusOr<std::string> ReadHeaderText(const RandomAccessFile& file,
                                           const SafetensorsLimits& limits) {
  if (file.size() < 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("a file of ", file.size(), " bytes is too small for a safetensors header"));
  }
  std::uint64_t size = 0;
  RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(&size, 1))));
  if (size > limits.header_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("header too large: ", size, " bytes, the limit is ", limits.header_bytes));
  }
  if (size > file.size() - 8) {
    return absl::InvalidArgumentError(absl::StrCat("invalid header length: ", size,
                                                   " bytes in a file of ", file.size(),
                                                   "; the file is truncated"));
  }
  std::string text(size, '\0');
  RETURN_IF_ERROR(file.Read(8, std::as_writable_bytes(std::span(text))));
  return text;
}

absl::Status ReadFileMetadata(const Json& entry, SafetensorsFile& out) {
  if (!entry.is_object()) return absl::InvalidArgumentError("__metadata__ is not an object");
  for (const Json::Member& member : entry.AsObject()) {
    if (!member.second.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat("__metadata__ \"", member.first, "\" is not a string"));
    }
    out.metadata.emplace_back(member.first, member.second.AsString());
  }
  return absl::OkStatus();
}

// [begin, end) relative to the data buffer; the size agrees with the shape.
struct Entry {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  TensorInfo tensor;
};

absl::Status ReadShape(const Json& shape, const SafetensorsLimits& limits, TensorInfo& tensor,
                       std::uint64_t& bytes) {
  if (!shape.is_array()) return absl::InvalidArgumentError("\"shape\" is not an array");
  if (shape.AsArray().size() > limits.rank) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", shape.AsArray().size(), " is above the limit of ", limits.rank));
  }
  std::uint64_t elements = 1;
  for (const Json& dim : shape.AsArray()) {
    if (!dim.FitsUint64())
      return absl::InvalidArgumentError("a dimension is not an unsigned integer");
    if (__builtin_mul_overflow(elements, dim.AsUint64(), &elements)) {
      return absl::InvalidArgumentError("the product of the dimensions overflows");
    }
    if (!dim.FitsInt64()) {
      return absl::InvalidArgumentError(
          absl::StrCat("dimension ", dim.AsUint64(), " is above 2^63"));
    }
    tensor.shape.push_back(dim.AsInt64());
  }
  std::uint64_t bits = 0;
  if (__builtin_mul_overflow(elements, static_cast<std::uint64_t>(BitsOf(tensor.dtype)), &bits)) {
    return absl::InvalidArgumentError("the size in bits overflows");
  }
  if (bits % 8 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(elements, " elements of ", NameOf(tensor.dtype), " are not whole bytes"));
  }
  bytes = bits / 8;
  return absl::OkStatus();
}

absl::Status ReadEntry(const Json& json, const SafetensorsLimits& limits, Entry& entry) {
  if (!json.is_object()) return absl::InvalidArgumentError("is not an object");
  const Json* dtype = json.Find("dtype");
  const Json* shape = json.Find("shape");
  const Json* offsets = json.Find("data_offsets");
  if (dtype == nullptr || shape == nullptr || offsets == nullptr) {
    return absl::InvalidArgumentError("lacks \"dtype\", \"shape\" or \"data_offsets\"");
  }
  if (!dtype->is_string()) return absl::InvalidArgumentError("\"dtype\" is not a string");
  const std::optional<DType> known = DTypeNamed(dtype->AsString());
  if (!known) {
    return absl::UnimplementedError(
        absl::StrCat("has unknown dtype \"", dtype->AsString().substr(0, 32), "\""));
  }
  entry.tensor.dtype = *known;
  std::uint64_t bytes = 0;
  RETURN_IF_ERROR(ReadShape(*shape, limits, entry.tensor, bytes));
  if (!offsets->is_array() || offsets->AsArray().size() != 2 ||
      !offsets->AsArray()[0].FitsUint64() || !offsets->AsArray()[1].FitsUint64()) {
    return absl::InvalidArgumentError("\"data_offsets\" are not two unsigned integers");
  }
  entry.begin = offsets->AsArray()[0].AsUint64();
  entry.end = offsets->AsArray()[1].AsUint64();
  if (entry.end < entry.begin) {
    return absl::InvalidArgumentError(
        absl::StrCat("ends at ", entry.end, " before it begins at ", entry.begin));
  }
  if (entry.end - entry.begin != bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", entry.end - entry.begin, " bytes, its shape and dtype need ", bytes));
  }
  entry.tensor.bytes = bytes;
  return absl::OkStatus();
}

absl::StatusOr<SafetensorsFile> ReadAll(const RandomAccessFile& file,
                                        const SafetensorsLimits& limits) {
  ASSIGN_OR_RETURN(const std::string text, ReadHeaderText(file, limits));
  const std::uint64_t data_begin = 8 + text.size();
  JsonLimits json_limits;
  json_limits.max_depth = 8;
  // A tensor is eight values or so: itself, dtype, shape and its dimensions, offsets.
  json_limits.max_values = static_cast<std::int64_t>(limits.tensors) * 10 + 1000;
  ASSIGN_OR_RETURN(Json header, ParseJson(text, json_limits));
  if (!header.is_object()) return absl::InvalidArgumentError("the header is not a JSON object");
  if (header.AsObject().size() > limits.tensors) {
    return absl::InvalidArgumentError(absl::StrCat("the header names ", header.AsObject().size(),
                                                   " tensors, the limit is ", limits.tensors));
  }
  SafetensorsFile out;
  std::vector<Entry> entries;
  entries.reserve(header.AsObject().size());
  for (Json::Member& member : header.AsObject()) {
    if (member.first == "__metadata__") {
      RETURN_IF_ERROR(ReadFileMetadata(member.second, out));
      continue;
    }
    if (member.first.empty() || member.first.size() > limits.name_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("a tensor has a name of ", member.first.size(),
                                                     " bytes, not 1 to ", limits.name_bytes));
    }
    Entry entry;
    if (const absl::Status status = ReadEntry(member.second, limits, entry); !status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("tensor \"", member.first, "\" ", status.message()));
    }
    entry.tensor.name = std::move(member.first);
    entries.push_back(std::move(entry));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  std::uint64_t at = 0;
  for (Entry& entry : entries) {
    if (entry.begin != at) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", entry.tensor.name,
                                                     "\" begins at ", entry.begin, ", not at ", at,
                                                     ": tensors overlap or leave a hole"));
    }
    at = entry.end;
    entry.tensor.offset = data_begin + entry.begin;
    out.tensors.push_back(std::move(entry.tensor));
  }
  if (at != file.size() - data_begin) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensors end at ", at, " of ", file.size() - data_begin,
                     " data bytes: the file is truncated or has a tail"));
  }
  return out;
}

}  // namespace

absl::StatusOr<SafetensorsFile> ReadSafetensors(const RandomAccessFile& file,
                                                const SafetensorsLimits& limits) {
  absl::StatusOr<SafetensorsFile> read = ReadAll(file, limits);
  if (!read.ok()) {
    return absl::Status(read.status().code(),
                        absl::StrCat(file.path(), ": ", read.status().message()));
  }
  return read;
}

}  // namespace nibble
