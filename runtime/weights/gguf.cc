#include "runtime/weights/gguf.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <set>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

constexpr std::uint32_t kMaxDims = 4;
constexpr std::uint64_t kMaxTensorName = 63;
constexpr std::uint64_t kMaxStringBytes = std::uint64_t{1} << 30;
constexpr std::uint64_t kMaxArrayCount = std::uint64_t{1} << 30;
constexpr std::uint64_t kDefaultAlignment = 32;

enum ValueType : std::uint32_t {
  kTypeU8,
  kTypeI8,
  kTypeU16,
  kTypeI16,
  kTypeU32,
  kTypeI32,
  kTypeF32,
  kTypeBool,
  kTypeString,
  kTypeArray,
  kTypeU64,
  kTypeI64,
  kTypeF64,
  kTypeCount
};

// Bytes of one value; for a string the least it can take.
constexpr std::array<std::uint64_t, kTypeCount> kValueBytes = {1, 1, 2, 2, 4, 4, 4,
                                                               1, 8, 0, 8, 8, 8};

constexpr GgmlType kGgmlTypes[] = {
    {0, "F32", 1, 4, DType::kF32},
    {1, "F16", 1, 2, DType::kF16},
    {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},
    {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},
    {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},
    {12, "Q4_K", 256, 144},
    {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},
    {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},
    {18, "IQ3_XXS", 256, 98},
    {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18},
    {21, "IQ3_S", 256, 110},
    {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136},
    {24, "I8", 1, 1, DType::kI8},
    {25, "I16", 1, 2, DType::kI16},
    {26, "I32", 1, 4, DType::kI32},
    {27, "I64", 1, 8, DType::kI64},
    {28, "F64", 1, 8, DType::kF64},
    {29, "IQ1_M", 256, 56},
    {30, "BF16", 1, 2, DType::kBF16},
    {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},
    {39, "MXFP4", 32, 17},
};

// Reads a file front to back through a buffer, never past its end.
class Cursor {
 public:
  explicit Cursor(const RandomAccessFile& file) : file_(file) {}

  std::uint64_t position() const { return position_; }
  std::uint64_t remaining() const { return file_.size() - position_; }

  absl::Status Bytes(void* out, std::size_t count) {
    if (count == 0) return absl::OkStatus();  // `out` may be null
    if (count > remaining()) {
      return absl::InvalidArgumentError(absl::StrCat("truncated: ", count, " bytes wanted at byte ",
                                                     position_, " of ", file_.size()));
    }
    auto* to = static_cast<std::byte*>(out);
    if (count > kBufferBytes) {
      RETURN_IF_ERROR(file_.Read(position_, std::span(to, count)));
      position_ += count;
      return absl::OkStatus();
    }
    if (position_ < buffer_begin_ || position_ + count > buffer_begin_ + buffer_.size()) {
      buffer_.resize(std::min<std::uint64_t>(kBufferBytes, remaining()));
      buffer_begin_ = position_;
      RETURN_IF_ERROR(file_.Read(position_, std::span(buffer_)));
    }
    std::memcpy(to, buffer_.data() + (position_ - buffer_begin_), count);
    position_ += count;
    return absl::OkStatus();
  }

  template <typename T>
  absl::StatusOr<T> Number() {
    T value{};
    RETURN_IF_ERROR(Bytes(&value, sizeof(value)));
    return value;
  }

  absl::StatusOr<std::string> String(absl::string_view what) {
    ASSIGN_OR_RETURN(const std::uint64_t size, Number<std::uint64_t>());
    if (size > kMaxStringBytes || size > remaining()) {
      return absl::InvalidArgumentError(absl::StrCat(what, " has a length of ", size, " bytes; ",
                                                     remaining(), " are left in the file and ",
                                                     kMaxStringBytes, " are the limit"));
    }
    std::string text(size, '\0');
    RETURN_IF_ERROR(Bytes(text.data(), text.size()));
    return text;
  }

 private:
  static constexpr std::size_t kBufferBytes = 256 * 1024;

  const RandomAccessFile& file_;
  std::uint64_t position_ = 0;
  std::uint64_t buffer_begin_ = 0;
  std::vector<std::byte> buffer_;
};

template <typename T>
absl::StatusOr<GgufMetadata::Value> ReadScalar(Cursor& cursor) {
  ASSIGN_OR_RETURN(const T value, cursor.Number<T>());
  if constexpr (std::is_floating_point_v<T>) {
    return GgufMetadata::Value(static_cast<double>(value));
  } else if constexpr (std::is_signed_v<T>) {
    return GgufMetadata::Value(static_cast<std::int64_t>(value));
  } else {
    return GgufMetadata::Value(static_cast<std::uint64_t>(value));
  }
}

template <typename T>
absl::StatusOr<GgufMetadata::Value> ReadNumbers(Cursor& cursor, std::uint64_t count) {
  using Wide = std::conditional_t<std::is_floating_point_v<T>, double, std::int64_t>;
  std::vector<T> raw(count);
  RETURN_IF_ERROR(cursor.Bytes(raw.data(), raw.size() * sizeof(T)));
  if constexpr (std::is_same_v<T, std::uint64_t>) {
    for (const T value : raw) {
      if (value > static_cast<T>(std::numeric_limits<std::int64_t>::max())) {
        return absl::InvalidArgumentError(absl::StrCat("array element ", value, " is above 2^63"));
      }
    }
  }
  return GgufMetadata::Value(std::vector<Wide>(raw.begin(), raw.end()));
}

absl::StatusOr<GgufMetadata::Value> ReadArray(Cursor& cursor, absl::string_view key) {
  ASSIGN_OR_RETURN(const auto type, cursor.Number<std::uint32_t>());
  ASSIGN_OR_RETURN(const auto count, cursor.Number<std::uint64_t>());
  if (type >= kTypeCount || type == kTypeArray) {
    return absl::InvalidArgumentError(absl::StrCat("key \"", key, "\" is an array of value type ",
                                                   type, ", which is unknown or nested"));
  }
  if (count > kMaxArrayCount || count > cursor.remaining() / kValueBytes[type]) {
    return absl::InvalidArgumentError(absl::StrCat(
        "key \"", key, "\" claims ", count, " array elements; ", cursor.remaining(),
        " bytes are left in the file and ", kMaxArrayCount, " elements are the limit"));
  }
  switch (type) {
    case kTypeU8: return ReadNumbers<std::uint8_t>(cursor, count);
    case kTypeI8: return ReadNumbers<std::int8_t>(cursor, count);
    case kTypeU16: return ReadNumbers<std::uint16_t>(cursor, count);
    case kTypeI16: return ReadNumbers<std::int16_t>(cursor, count);
    case kTypeU32: return ReadNumbers<std::uint32_t>(cursor, count);
    case kTypeI32: return ReadNumbers<std::int32_t>(cursor, count);
    case kTypeU64: return ReadNumbers<std::uint64_t>(cursor, count);
    case kTypeI64: return ReadNumbers<std::int64_t>(cursor, count);
    case kTypeF32: return ReadNumbers<float>(cursor, count);
    case kTypeF64: return ReadNumbers<double>(cursor, count);
    case kTypeBool: {
      std::vector<std::uint8_t> raw(count);
      RETURN_IF_ERROR(cursor.Bytes(raw.data(), raw.size()));
      std::vector<bool> values(count);
      for (std::size_t i = 0; i < raw.size(); ++i) values[i] = raw[i] != 0;
      return GgufMetadata::Value(std::move(values));
    }
    default: {
      std::vector<std::string> strings;
      strings.reserve(count);
      const std::string what = absl::StrCat("an element of key \"", key, "\"");
      for (std::uint64_t i = 0; i < count; ++i) {
        ASSIGN_OR_RETURN(std::string text, cursor.String(what));
        strings.push_back(std::move(text));
      }
      return GgufMetadata::Value(std::move(strings));
    }
  }
}

absl::StatusOr<GgufMetadata::Value> ReadValue(Cursor& cursor, std::uint32_t type,
                                              absl::string_view key) {
  switch (type) {
    case kTypeU8: return ReadScalar<std::uint8_t>(cursor);
    case kTypeI8: return ReadScalar<std::int8_t>(cursor);
    case kTypeU16: return ReadScalar<std::uint16_t>(cursor);
    case kTypeI16: return ReadScalar<std::int16_t>(cursor);
    case kTypeU32: return ReadScalar<std::uint32_t>(cursor);
    case kTypeI32: return ReadScalar<std::int32_t>(cursor);
    case kTypeU64: return ReadScalar<std::uint64_t>(cursor);
    case kTypeI64: return ReadScalar<std::int64_t>(cursor);
    case kTypeF32: return ReadScalar<float>(cursor);
    case kTypeF64: return ReadScalar<double>(cursor);
    case kTypeBool: {
      ASSIGN_OR_RETURN(const auto byte, cursor.Number<std::uint8_t>());
      return GgufMetadata::Value(byte != 0);
    }
    case kTypeString: {
      ASSIGN_OR_RETURN(std::string text, cursor.String(absl::StrCat("key \"", key, "\"")));
      return GgufMetadata::Value(std::move(text));
    }
    case kTypeArray: return ReadArray(cursor, key);
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("key \"", key, "\" has unknown value type ", type));
  }
}

struct Counts {
  std::uint64_t tensors = 0;
  std::uint64_t values = 0;
};

absl::StatusOr<Counts> ReadPreamble(Cursor& cursor) {
  std::array<char, 4> magic{};
  RETURN_IF_ERROR(cursor.Bytes(magic.data(), magic.size()));
  if (std::memcmp(magic.data(), "GGUF", 4) != 0) {
    return absl::InvalidArgumentError("not a GGUF file: the first four bytes are not \"GGUF\"");
  }
  ASSIGN_OR_RETURN(const auto version, cursor.Number<std::uint32_t>());
  if (version == 0) return absl::InvalidArgumentError("GGUF version 0 does not exist");
  if ((version & 0xffff) == 0) {
    return absl::UnimplementedError(
        "big-endian GGUF is not supported: convert the file to little-endian");
  }
  if (version == 1 || version > 3) {
    return absl::UnimplementedError(absl::StrCat(
        "GGUF version ", version, " is not supported, only 2 and 3: convert the model again"));
  }
  Counts counts;
  ASSIGN_OR_RETURN(counts.tensors, cursor.Number<std::uint64_t>());
  ASSIGN_OR_RETURN(counts.values, cursor.Number<std::uint64_t>());
  // The smallest tensor entry is 8 + 1 + 4 + 8 + 4 + 8 bytes, the smallest key-value 8 + 1 + 4 + 1.
  if (counts.tensors > cursor.remaining() / 33) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor count ", counts.tensors, " is more than the file can hold"));
  }
  if (counts.values > cursor.remaining() / 14) {
    return absl::InvalidArgumentError(
        absl::StrCat("key-value count ", counts.values, " is more than the file can hold"));
  }
  return counts;
}

absl::Status ReadMetadata(Cursor& cursor, std::uint64_t count, GgufMetadata& metadata,
                          std::uint64_t& alignment) {
  for (std::uint64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(std::string key, cursor.String(absl::StrCat("the name of key ", i)));
    if (key.empty()) return absl::InvalidArgumentError(absl::StrCat("key ", i, " has no name"));
    if (key.size() > 65535) {
      return absl::InvalidArgumentError(
          absl::StrCat("key ", i, " has a name of ", key.size(), " bytes, the limit is 65535"));
    }
    if (metadata.Find(key) != nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("duplicate key \"", key, "\""));
    }
    ASSIGN_OR_RETURN(const auto type, cursor.Number<std::uint32_t>());
    ASSIGN_OR_RETURN(GgufMetadata::Value value, ReadValue(cursor, type, key));
    if (key == "general.alignment") {
      const auto* number = std::get_if<std::uint64_t>(&value);
      if (type != kTypeU32 || number == nullptr || *number == 0 || (*number & (*number - 1)) != 0) {
        return absl::InvalidArgumentError("general.alignment is not a u32 that is a power of two");
      }
      alignment = *number;
    }
    metadata.values().emplace(std::move(key), std::move(value));
  }
  return absl::OkStatus();
}

// One row of the tensor table; the offset is still relative to the data section.
absl::StatusOr<TensorInfo> ReadTensorEntry(Cursor& cursor, std::uint64_t index) {
  TensorInfo tensor;
  ASSIGN_OR_RETURN(tensor.name, cursor.String(absl::StrCat("the name of tensor ", index)));
  if (tensor.name.empty() || tensor.name.size() > kMaxTensorName) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", index, " has a name of ",
                                                   tensor.name.size(), " bytes, not 1 to ",
                                                   kMaxTensorName));
  }
  const auto bad = [&](auto&&... why) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", tensor.name, "\" ", why...));
  };
  ASSIGN_OR_RETURN(const auto dims, cursor.Number<std::uint32_t>());
  if (dims < 1 || dims > kMaxDims) return bad("has ", dims, " dimensions, not 1 to ", kMaxDims);
  std::int64_t elements = 1;
  tensor.shape.resize(dims);
  for (std::uint32_t d = 0; d < dims; ++d) {
    ASSIGN_OR_RETURN(const auto dim, cursor.Number<std::int64_t>());
    if (dim < 1) return bad("has dimension ", d, " of ", dim);
    if (__builtin_mul_overflow(elements, dim, &elements)) return bad("has 2^63 or more elements");
    tensor.shape[dims - 1 - d] = dim;
  }
  ASSIGN_OR_RETURN(const auto type_id, cursor.Number<std::uint32_t>());
  const GgmlType* type = FindGgmlType(type_id);
  if (type == nullptr) {
    return absl::UnimplementedError(absl::StrCat("tensor \"", tensor.name, "\" has ggml type ",
                                                 type_id,
                                                 ", which is unknown, removed or never stored; "
                                                 "requantize the model to a supported type"));
  }
  if (tensor.shape.back() % type->elements != 0) {
    return bad("has rows of ", tensor.shape.back(), " elements, not whole blocks of ",
               type->elements, " (", type->name, ")");
  }
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(elements / type->elements, type->bytes, &bytes)) {
    return bad("has 2^63 or more bytes");
  }
  tensor.ggml_type = type->id;
  tensor.dtype = type->dtype;
  tensor.bytes = static_cast<std::uint64_t>(bytes);
  ASSIGN_OR_RETURN(tensor.offset, cursor.Number<std::uint64_t>());
  return tensor;
}

// Offsets are exactly the running sum of padded sizes; makes them absolute and checks the end of
// the file.
absl::Status PlaceTensors(std::vector<TensorInfo>& tensors, std::uint64_t header_end,
                          std::uint64_t alignment, std::uint64_t file_size) {
  const auto padded = [&](std::uint64_t value, std::uint64_t* out) {
    if (__builtin_add_overflow(value, alignment - 1, out)) return false;
    *out &= ~(alignment - 1);
    return true;
  };
  std::uint64_t data_begin = 0;
  if (!padded(header_end, &data_begin)) return absl::InvalidArgumentError("data section overflows");
  std::uint64_t expected = 0;
  for (TensorInfo& tensor : tensors) {
    const auto bad = [&](auto&&... why) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", tensor.name, "\" ", why...));
    };
    if (tensor.offset != expected) {
      return bad("has offset ", tensor.offset, ", not ", expected, " where the previous one ends");
    }
    std::uint64_t size = 0;
    if (!padded(tensor.bytes, &size) || __builtin_add_overflow(expected, size, &expected)) {
      return bad("ends past 2^64 bytes");
    }
    if (data_begin > file_size || tensor.offset > file_size - data_begin ||
        tensor.bytes > file_size - data_begin - tensor.offset) {
      return bad("of ", tensor.bytes, " bytes ends past the end of the file, ", file_size,
                 " bytes: the file is truncated");
    }
    tensor.offset += data_begin;
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufFile> ReadAll(const RandomAccessFile& file) {
  Cursor cursor(file);
  GgufFile out;
  ASSIGN_OR_RETURN(const Counts counts, ReadPreamble(cursor));
  std::uint64_t alignment = kDefaultAlignment;
  RETURN_IF_ERROR(ReadMetadata(cursor, counts.values, out.metadata, alignment));
  if (counts.tensors > cursor.remaining() / 33) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor count ", counts.tensors, " is more than the file can hold"));
  }
  out.tensors.reserve(counts.tensors);
  std::set<absl::string_view> names;
  for (std::uint64_t i = 0; i < counts.tensors; ++i) {
    ASSIGN_OR_RETURN(TensorInfo tensor, ReadTensorEntry(cursor, i));
    out.tensors.push_back(std::move(tensor));
    if (!names.insert(out.tensors.back().name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("duplicate tensor \"", out.tensors.back().name, "\""));
    }
  }
  RETURN_IF_ERROR(PlaceTensors(out.tensors, cursor.position(), alignment, file.size()));
  return out;
}

template <typename T>
const T* Get(const GgufMetadata& metadata, absl::string_view key) {
  const GgufMetadata::Value* value = metadata.Find(key);
  return value == nullptr ? nullptr : std::get_if<T>(value);
}

}  // namespace

const GgmlType* FindGgmlType(std::int64_t id) {
  for (const GgmlType& type : kGgmlTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

const GgufMetadata::Value* GgufMetadata::Find(absl::string_view key) const {
  const auto found = values_.find(std::string(key));
  return found == values_.end() ? nullptr : &found->second;
}

std::optional<std::int64_t> GgufMetadata::Integer(absl::string_view key) const {
  if (const auto* value = Get<std::int64_t>(*this, key)) return *value;
  const auto* value = Get<std::uint64_t>(*this, key);
  if (value == nullptr ||
      *value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return std::nullopt;
  }
  return static_cast<std::int64_t>(*value);
}

std::optional<double> GgufMetadata::Number(absl::string_view key) const {
  if (const auto* value = Get<double>(*this, key)) return *value;
  if (const auto* value = Get<std::int64_t>(*this, key)) return static_cast<double>(*value);
  if (const auto* value = Get<std::uint64_t>(*this, key)) return static_cast<double>(*value);
  return std::nullopt;
}

std::optional<bool> GgufMetadata::Bool(absl::string_view key) const {
  const bool* value = Get<bool>(*this, key);
  return value == nullptr ? std::nullopt : std::optional<bool>(*value);
}

const std::string* GgufMetadata::String(absl::string_view key) const {
  return Get<std::string>(*this, key);
}

const std::vector<std::string>* GgufMetadata::Strings(absl::string_view key) const {
  return Get<std::vector<std::string>>(*this, key);
}

const std::vector<double>* GgufMetadata::Numbers(absl::string_view key) const {
  return Get<std::vector<double>>(*this, key);
}

const std::vector<std::int64_t>* GgufMetadata::Integers(absl::string_view key) const {
  return Get<std::vector<std::int64_t>>(*this, key);
}

absl::StatusOr<GgufFile> ReadGguf(const RandomAccessFile& file) {
  absl::StatusOr<GgufFile> read = ReadAll(file);
  if (!read.ok()) {
    return absl::Status(read.status().code(),
                        absl::StrCat(file.path(), ": ", read.status().message()));
  }
  return read;
}

}  // namespace nibble
