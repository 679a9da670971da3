#include "tests/mutation/image.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/json.h"

namespace nibble {
namespace {

constexpr std::uint64_t kAlignment = 32;

std::uint64_t Aligned(std::uint64_t offset) {
  return (offset + kAlignment - 1) / kAlignment * kAlignment;
}

[[noreturn]] void Die(const char* why) {
  std::fprintf(stderr, "seed checkpoint: %s\n", why);
  std::abort();
}

class Bytes {
 public:
  explicit Bytes(absl::string_view bytes) : bytes_(bytes) {}

  std::uint64_t position() const { return position_; }
  absl::string_view Take(std::uint64_t count) {
    if (count > bytes_.size() - position_) Die("truncated");
    position_ += count;
    return bytes_.substr(position_ - count, count);
  }
  template <typename T>
  T Number() {
    T value;
    std::memcpy(&value, Take(sizeof(value)).data(), sizeof(value));
    return value;
  }
  std::string String() { return std::string(Take(Number<std::uint64_t>())); }

  // One GGUF value of `type`.
  void Skip(std::uint32_t type) {
    constexpr std::uint64_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == GgufImage::kText) {
      String();
    } else if (type == GgufImage::kArray) {
      const auto inner = Number<std::uint32_t>();
      for (auto left = Number<std::uint64_t>(); left > 0; --left) Skip(inner);
    } else {
      Take(kSizes[type]);
    }
  }

 private:
  absl::string_view bytes_;
  std::uint64_t position_ = 0;
};

}  // namespace

SafetensorsImage SafetensorsImage::Parse(absl::string_view file) {
  Bytes in(file);
  const absl::StatusOr<Json> header = ParseJson(in.Take(in.Number<std::uint64_t>()));
  if (!header.ok()) Die("the header is not JSON");
  SafetensorsImage image;
  for (const auto& [name, entry] : header->AsObject()) {
    if (name == "__metadata__") continue;
    Tensor tensor;
    tensor.name = name;
    tensor.dtype = entry.Find("dtype")->AsString();
    for (const Json& dim : entry.Find("shape")->AsArray()) tensor.shape.push_back(dim.AsUint64());
    tensor.begin = entry.Find("data_offsets")->AsArray()[0].AsUint64();
    tensor.end = entry.Find("data_offsets")->AsArray()[1].AsUint64();
    image.tensors.push_back(std::move(tensor));
  }
  image.data = std::string(file.substr(in.position()));
  return image;
}

void SafetensorsImage::Add(std::string name, std::string dtype, std::vector<std::uint64_t> shape,
                           absl::string_view bytes) {
  tensors.push_back({std::move(name), std::move(dtype), std::move(shape), data.size(),
                     data.size() + bytes.size()});
  absl::StrAppend(&data, bytes);
}

void SafetensorsImage::SetBytes(std::size_t index, absl::string_view bytes) {
  const std::uint64_t begin = tensors[index].begin, end = tensors[index].end;
  data.replace(begin, end - begin, std::string(bytes));
  const std::uint64_t moved = bytes.size() - (end - begin);  // wraps when it shrinks
  for (Tensor& tensor : tensors) {
    if (tensor.begin >= end && &tensor != &tensors[index]) {
      tensor.begin += moved;
      tensor.end += moved;
    }
  }
  tensors[index].end = begin + bytes.size();
}

std::string SafetensorsImage::File() const {
  std::string header = "{";
  for (const Tensor& tensor : tensors) {
    absl::StrAppend(&header, header.size() > 1 ? "," : "", DumpJson(tensor.name),
                    ":{\"dtype\":", DumpJson(tensor.dtype), ",\"shape\":[",
                    absl::StrJoin(tensor.shape, ","), "],\"data_offsets\":[", tensor.begin, ",",
                    tensor.end, "]}");
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  return RawBytes(header.size() + static_cast<std::uint64_t>(header_lie)) + header + data;
}

GgufImage GgufImage::Parse(absl::string_view file) {
  Bytes in(file);
  in.Take(4);
  GgufImage image;
  image.version = in.Number<std::uint32_t>();
  const auto tensors = in.Number<std::uint64_t>(), keys = in.Number<std::uint64_t>();
  for (std::uint64_t i = 0; i < keys; ++i) {
    KeyValue value;
    value.key = in.String();
    value.type = in.Number<std::uint32_t>();
    const std::uint64_t begin = in.position();
    in.Skip(value.type);
    value.raw = std::string(file.substr(begin, in.position() - begin));
    image.keys.push_back(std::move(value));
  }
  for (std::uint64_t i = 0; i < tensors; ++i) {
    Tensor tensor;
    tensor.name = in.String();
    tensor.dims.resize(in.Number<std::uint32_t>());
    for (std::uint64_t& dim : tensor.dims) dim = in.Number<std::uint64_t>();
    tensor.type = in.Number<std::uint32_t>();
    tensor.offset = in.Number<std::uint64_t>();
    image.tensors.push_back(std::move(tensor));
  }
  image.data = std::string(file.substr(Aligned(in.position())));
  return image;
}

std::string GgufImage::Text(absl::string_view text) {
  return absl::StrCat(RawBytes<std::uint64_t>(text.size()), text);
}

std::string GgufImage::Array(std::uint32_t type, std::uint64_t count, absl::string_view values) {
  return absl::StrCat(RawBytes(type), RawBytes(count), values);
}

std::uint64_t GgufImage::End(std::size_t index) const {
  std::uint64_t end = data.size();
  for (const Tensor& tensor : tensors) {
    if (tensor.offset > tensors[index].offset) end = std::min(end, tensor.offset);
  }
  return end;
}

void GgufImage::SetBytes(std::size_t index, std::uint32_t type, absl::string_view bytes) {
  const std::uint64_t begin = tensors[index].offset, end = End(index);
  std::string padded(bytes);
  padded.resize(Aligned(padded.size()));
  data.replace(begin, end - begin, padded);
  for (Tensor& tensor : tensors) {
    if (tensor.offset > begin) tensor.offset += padded.size() - (end - begin);
  }
  tensors[index].type = type;
}

std::string GgufImage::File() const {
  std::string out = absl::StrCat("GGUF", RawBytes(version),
                                 RawBytes(tensors.size() + static_cast<std::uint64_t>(tensors_lie)),
                                 RawBytes(keys.size() + static_cast<std::uint64_t>(keys_lie)));
  for (const KeyValue& value : keys)
    absl::StrAppend(&out, Text(value.key), RawBytes(value.type), value.raw);
  for (const Tensor& tensor : tensors) {
    absl::StrAppend(&out, Text(tensor.name),
                    RawBytes(static_cast<std::uint32_t>(tensor.dims.size())));
    for (const std::uint64_t dim : tensor.dims) out += RawBytes(dim);
    absl::StrAppend(&out, RawBytes(tensor.type), RawBytes(tensor.offset));
  }
  out.resize(Aligned(out.size()));
  return out + data;
}

}  // namespace nibble
