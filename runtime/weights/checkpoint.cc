#include "runtime/weights/checkpoint.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "runtime/base/overloaded.h"
#include "runtime/base/status.h"
#include "runtime/weights/fingerprint.h"
#include "runtime/weights/safetensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMaxSideFileBytes = std::uint64_t{256} << 20;
constexpr std::int64_t kMaxSplits = 1000;
// Beside a Hugging Face checkpoint's weights and config.json: whatever else decides an answer.
constexpr const char* kSideFiles[] = {
    "generation_config.json", "quantize_config.json", "quant_config.json", "tokenizer.json",
    "tokenizer_config.json",  "vocab.json",           "merges.txt",        "chat_template.jinja"};
constexpr char kConvert[] = "convert the model to safetensors or GGUF";

// The path to open for `path`.
absl::StatusOr<std::string> Resolve(const PathCheck& check, const std::string& path) {
  return check ? check(path) : path;
}

absl::StatusOr<std::unique_ptr<RandomAccessFile>> OpenChecked(const PathCheck& check,
                                                              const std::string& path) {
  ASSIGN_OR_RETURN(const std::string resolved, Resolve(check, path));
  return RandomAccessFile::Open(resolved);
}

void AddTo(Fingerprint& fingerprint, const GgufMetadata::Value& value) {
  fingerprint.Add(static_cast<std::uint64_t>(value.index()));
  const auto number = Overloaded{[](double x) { return std::bit_cast<std::uint64_t>(x); },
                                 [](auto x) { return static_cast<std::uint64_t>(x); }};
  std::visit(Overloaded{[&](const std::string& text) { fingerprint.Add(text); },
                        [&](const std::vector<std::string>& texts) {
                          fingerprint.Add(static_cast<std::uint64_t>(texts.size()));
                          for (const std::string& text : texts) fingerprint.Add(text);
                        },
                        [&]<typename T>(const std::vector<T>& numbers) {
                          fingerprint.Add(static_cast<std::uint64_t>(numbers.size()));
                          for (const T x : numbers) fingerprint.Add(number(x));
                        },
                        [&](auto x) { fingerprint.Add(number(x)); }},
             value);
}

// Every kind of checkpoint is files, a table of tensors, and one of the two kinds of configuration.
class FileCheckpoint final : public Checkpoint {
 public:
  FileCheckpoint(CheckpointKind kind, std::string path, PathCheck check)
      : kind_(kind), path_(std::move(path)), check_(std::move(check)) {}

  CheckpointKind kind() const override { return kind_; }
  const std::string& path() const override { return path_; }
  const Json& config() const override { return config_; }
  const GgufMetadata* gguf() const override { return gguf_ ? &*gguf_ : nullptr; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }

  absl::StatusOr<std::string> ReadSideFile(absl::string_view name) const override {
    if (kind_ == CheckpointKind::kGguf) {
      return absl::NotFoundError(absl::StrCat(path_, " is a GGUF file and has no ", name));
    }
    if (name.empty() || name == "." || name == ".." ||
        name.find_first_of(absl::string_view("/\\\0", 3)) != absl::string_view::npos) {
      return absl::InvalidArgumentError(absl::StrCat("\"", name, "\" is not a plain file name"));
    }
    return ReadText(directory_ / std::string(name));
  }

  const TensorInfo* Find(absl::string_view name) const override {
    const auto at = std::lower_bound(
        tensors_.begin(), tensors_.end(), name,
        [](const TensorInfo& tensor, absl::string_view wanted) { return tensor.name < wanted; });
    return at != tensors_.end() && at->name == name ? &*at : nullptr;
  }

  absl::Status Read(const TensorInfo& tensor, std::span<std::byte> out) const override {
    if (out.size() != tensor.bytes) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", tensor.name, "\" has ",
                                                     tensor.bytes, " bytes, not ", out.size()));
    }
    return files_[static_cast<std::size_t>(tensor.file)]->Read(tensor.offset, out);
  }

  void DropCachedPages() const override {
    for (const auto& file : files_) file->DropCachedPages();
  }

  absl::StatusOr<std::string> Revision() const override {
    Fingerprint fingerprint;
    RETURN_IF_ERROR(AddTexts(fingerprint));
    for (const TensorInfo& tensor : tensors_) RETURN_IF_ERROR(AddTensor(tensor, fingerprint));
    return fingerprint.Hex();
  }

  absl::StatusOr<std::unique_ptr<RandomAccessFile>> OpenFile(const fs::path& file) const {
    return OpenChecked(check_, file.string());
  }
  absl::StatusOr<std::string> ReadText(const fs::path& file) const {
    ASSIGN_OR_RETURN(const std::string path, Resolve(check_, file.string()));
    return ReadTextFile(path, kMaxSideFileBytes);
  }

  // --- used while opening only ---
  absl::Status AddSafetensors(const fs::path& file) {
    ASSIGN_OR_RETURN(auto opened, OpenFile(file));
    ASSIGN_OR_RETURN(SafetensorsFile read, ReadSafetensors(*opened));
    Add(std::move(opened), std::move(read.tensors));
    return absl::OkStatus();
  }

  absl::Status ReadConfig(const fs::path& directory) {
    directory_ = directory;
    config_ = Json(Json::Object{});
    absl::StatusOr<std::string> text = ReadSideFile("config.json");
    if (absl::IsNotFound(text.status())) return absl::OkStatus();
    RETURN_IF_ERROR(text.status());
    absl::StatusOr<Json> parsed = ParseJson(*text);
    if (!parsed.ok() || !parsed->is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat((directory / "config.json").string(), ": ",
                       parsed.ok() ? "not a JSON object" : parsed.status().message()));
    }
    config_ = *std::move(parsed);
    return absl::OkStatus();
  }

  void Add(std::unique_ptr<RandomAccessFile> file, std::vector<TensorInfo> tensors) {
    for (TensorInfo& tensor : tensors) {
      tensor.file = static_cast<int>(files_.size());
      tensors_.push_back(std::move(tensor));
    }
    files_.push_back(std::move(file));
  }

  void set_gguf(GgufMetadata metadata) {
    config_ = Json(Json::Object{});
    gguf_ = std::move(metadata);
  }

  absl::Status Finish() {
    std::sort(tensors_.begin(), tensors_.end(),
              [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
    for (std::size_t i = 1; i < tensors_.size(); ++i) {
      if (tensors_[i].name == tensors_[i - 1].name) {
        return absl::InvalidArgumentError(absl::StrCat(
            path_, ": tensor \"", tensors_[i].name, "\" is in ",
            files_[static_cast<std::size_t>(tensors_[i - 1].file)]->path(), " and in ",
            files_[static_cast<std::size_t>(tensors_[i].file)]->path(), "; remove one of the two"));
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status AddTexts(Fingerprint& fingerprint) const {
    fingerprint.Add(DumpJson(config_));
    if (gguf_) {
      for (const auto& [key, value] : gguf_->values()) {
        fingerprint.Add(key);
        AddTo(fingerprint, value);
      }
      return absl::OkStatus();
    }
    for (const char* name : kSideFiles) {
      const absl::StatusOr<std::string> text = ReadSideFile(name);
      if (absl::IsNotFound(text.status())) continue;
      RETURN_IF_ERROR(text.status());
      fingerprint.Add(absl::string_view(name));
      fingerprint.Add(*text);
    }
    return absl::OkStatus();
  }

  absl::Status AddTensor(const TensorInfo& tensor, Fingerprint& fingerprint) const {
    fingerprint.Add(tensor.name);
    for (const std::int64_t dim : tensor.shape) fingerprint.Add(static_cast<std::uint64_t>(dim));
    fingerprint.Add(static_cast<std::uint64_t>(tensor.dtype));
    fingerprint.Add(static_cast<std::uint64_t>(tensor.ggml_type + 1));
    fingerprint.Add(tensor.bytes);
    // The begin, the middle and the end tell requantized weights apart without reading gigabytes.
    std::array<std::byte, 256> sample{};
    const std::uint64_t some = std::min<std::uint64_t>(tensor.bytes, sample.size());
    for (const std::uint64_t at :
         {std::uint64_t{0}, (tensor.bytes - some) / 2, tensor.bytes - some}) {
      const auto bytes = std::span(sample).first(some);
      RETURN_IF_ERROR(
          files_[static_cast<std::size_t>(tensor.file)]->Read(tensor.offset + at, bytes));
      fingerprint.Add(absl::string_view(reinterpret_cast<const char*>(bytes.data()), some));
    }
    return absl::OkStatus();
  }

  const CheckpointKind kind_;
  const std::string path_;
  const PathCheck check_;
  fs::path directory_;
  Json config_;
  std::optional<GgufMetadata> gguf_;
  std::vector<std::unique_ptr<RandomAccessFile>> files_;
  std::vector<TensorInfo> tensors_;
};

using Opened = absl::StatusOr<std::unique_ptr<Checkpoint>>;

bool IsPickleName(absl::string_view name) {
  for (const char* extension : {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}) {
    if (absl::EndsWithIgnoreCase(name, extension)) return true;
  }
  return false;
}

absl::Status RefusePickle(const std::string& path) {
  return absl::InvalidArgumentError(absl::StrCat(
      path,
      " is a PyTorch pickle, which runs code when it is read, and is never opened: ", kConvert));
}

// A weight_map value is untrusted: a relative path that stays inside the directory by its spelling.
// Links are followed on purpose, as far as a PathCheck allows: the Hugging Face cache is made of
// them.
bool StaysInside(absl::string_view name) {
  if (name.empty() || name.front() == '/') return false;
  if (name.find_first_of(absl::string_view("\\\0", 2)) != absl::string_view::npos) return false;
  for (const fs::path& part : fs::path(std::string(name))) {
    if (part == ".." || part == ".") return false;
  }
  return true;
}

absl::StatusOr<std::map<std::string, std::string>> ReadWeightMap(const fs::path& index,
                                                                 const FileCheckpoint& checkpoint) {
  ASSIGN_OR_RETURN(const std::string text, checkpoint.ReadText(index));
  const absl::StatusOr<Json> json = ParseJson(text);
  const Json* weight_map = json.ok() ? json->Find("weight_map") : nullptr;
  if (weight_map == nullptr || !weight_map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(
        index.string(), ": ", json.ok() ? "no \"weight_map\" object" : json.status().message()));
  }
  std::map<std::string, std::string> out;
  for (const Json::Member& member : weight_map->AsObject()) {
    if (!member.second.is_string() || !StaysInside(member.second.AsString())) {
      return absl::InvalidArgumentError(
          absl::StrCat(index.string(), ": the file of tensor \"", member.first,
                       "\" is not a relative path inside the directory"));
    }
    if (IsPickleName(member.second.AsString())) {
      return RefusePickle((index.parent_path() / member.second.AsString()).string());
    }
    out.emplace(member.first, member.second.AsString());
  }
  return out;
}

absl::Status AddIndexed(const fs::path& directory, const fs::path& index,
                        FileCheckpoint& checkpoint) {
  using WeightMap = std::map<std::string, std::string>;
  ASSIGN_OR_RETURN(const WeightMap weight_map, ReadWeightMap(index, checkpoint));
  std::map<std::string, int> file_index;
  for (const auto& [tensor, file] : weight_map) {
    const auto [entry, is_new] = file_index.emplace(file, static_cast<int>(file_index.size()));
    if (is_new) RETURN_IF_ERROR(checkpoint.AddSafetensors(directory / file));
  }
  RETURN_IF_ERROR(checkpoint.Finish());
  for (const auto& [name, file] : weight_map) {
    const TensorInfo* tensor = checkpoint.Find(name);
    if (tensor == nullptr || tensor->file != file_index[file]) {
      return absl::InvalidArgumentError(absl::StrCat(index.string(), " says that tensor \"", name,
                                                     "\" is in ", file, ", but it is not"));
    }
  }
  if (const std::size_t extra = checkpoint.tensors().size() - weight_map.size(); extra > 0) {
    LogWarning("tensors in the shards that the index does not name",
               {{"index", index.string()}, {"tensors", absl::StrCat(extra)}});
  }
  return absl::OkStatus();
}

// Without an index: model.safetensors, or the only .safetensors there is.
absl::StatusOr<fs::path> OnlySafetensors(const fs::path& directory) {
  std::error_code error;
  if (fs::exists(directory / "model.safetensors", error)) return directory / "model.safetensors";
  std::vector<fs::path> found;
  std::vector<fs::path> ggufs;
  fs::path pickle;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (absl::EndsWith(name, ".safetensors")) found.push_back(entry->path());
    if (absl::EndsWith(name, ".gguf")) ggufs.push_back(entry->path());
    if (IsPickleName(name) && name != "training_args.bin") pickle = entry->path();
  }
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("cannot list ", directory.string(), ": ", error.message()));
  }
  if (found.size() == 1) return found.front();
  if (found.size() > 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        directory.string(), " holds ", found.size(),
        " .safetensors files and no model.safetensors.index.json: name the one to load"));
  }
  if (!ggufs.empty()) {
    std::sort(ggufs.begin(), ggufs.end());
    return absl::InvalidArgumentError(absl::StrCat(directory.string(),
                                                   " holds GGUF files: name the file, for example ",
                                                   ggufs.front().string()));
  }
  if (!pickle.empty()) return RefusePickle(pickle.string());
  return absl::NotFoundError(absl::StrCat(directory.string(), " holds no .safetensors file"));
}

Opened OpenDirectory(const std::string& path, PathCheck check) {
  auto checkpoint =
      std::make_unique<FileCheckpoint>(CheckpointKind::kHuggingFace, path, std::move(check));
  const fs::path directory(path);
  RETURN_IF_ERROR(checkpoint->ReadConfig(directory));
  const fs::path index = directory / "model.safetensors.index.json";
  std::error_code error;
  if (fs::exists(index, error)) {
    RETURN_IF_ERROR(AddIndexed(directory, index, *checkpoint));
    return checkpoint;
  }
  ASSIGN_OR_RETURN(const fs::path file, OnlySafetensors(directory));
  RETURN_IF_ERROR(checkpoint->AddSafetensors(file));
  RETURN_IF_ERROR(checkpoint->Finish());
  return checkpoint;
}

Opened OpenSafetensorsFile(const std::string& path, PathCheck check) {
  auto checkpoint =
      std::make_unique<FileCheckpoint>(CheckpointKind::kHuggingFace, path, std::move(check));
  RETURN_IF_ERROR(checkpoint->ReadConfig(fs::absolute(path).parent_path()));
  RETURN_IF_ERROR(checkpoint->AddSafetensors(path));
  RETURN_IF_ERROR(checkpoint->Finish());
  return checkpoint;
}

// "DIR/name-00001-of-00003.gguf" to part PART; nothing when the name is not of this form.
std::optional<std::string> SplitName(const std::string& path, std::int64_t part,
                                     std::int64_t count) {
  const std::string tail = absl::StrFormat("-%05d-of-%05d.gguf", 1, count);
  if (!absl::EndsWith(path, tail)) return std::nullopt;
  return path.substr(0, path.size() - tail.size()) +
         absl::StrFormat("-%05d-of-%05d.gguf", part + 1, count);
}

absl::Status AddSplits(const std::string& path, const GgufMetadata& first, std::int64_t count,
                       FileCheckpoint& checkpoint) {
  if (count > kMaxSplits) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": split.count is ", count, ", the limit is ", kMaxSplits));
  }
  if (first.Integer("split.no").value_or(0) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is part ", *first.Integer("split.no") + 1, " of ", count,
                     ": name the first part, -00001-of-", absl::StrFormat("%05d", count), ".gguf"));
  }
  for (std::int64_t part = 1; part < count; ++part) {
    const std::optional<std::string> name = SplitName(path, part, count);
    if (!name) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is the first of ", count, " parts, but its name does not end in ",
                       absl::StrFormat("-00001-of-%05d.gguf", count)));
    }
    ASSIGN_OR_RETURN(auto file, checkpoint.OpenFile(*name));
    ASSIGN_OR_RETURN(GgufFile read, ReadGguf(*file));
    if (read.metadata.Integer("split.no") != part ||
        read.metadata.Integer("split.count") != count) {
      return absl::InvalidArgumentError(
          absl::StrCat(*name, " does not say that it is part ", part + 1, " of ", count));
    }
    checkpoint.Add(std::move(file), std::move(read.tensors));
  }
  const auto tensors = static_cast<std::int64_t>(checkpoint.tensors().size());
  if (first.Integer("split.tensors.count").value_or(tensors) != tensors) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": all parts hold ", tensors,
                                                   " tensors, split.tensors.count says ",
                                                   *first.Integer("split.tensors.count")));
  }
  return absl::OkStatus();
}

Opened OpenGguf(const std::string& path, PathCheck check) {
  auto checkpoint = std::make_unique<FileCheckpoint>(CheckpointKind::kGguf, path, std::move(check));
  ASSIGN_OR_RETURN(auto file, checkpoint->OpenFile(path));
  ASSIGN_OR_RETURN(GgufFile read, ReadGguf(*file));
  checkpoint->Add(std::move(file), std::move(read.tensors));
  const std::int64_t count = read.metadata.Integer("split.count").value_or(0);
  if (count > 1) RETURN_IF_ERROR(AddSplits(path, read.metadata, count, *checkpoint));
  checkpoint->set_gguf(std::move(read.metadata));
  RETURN_IF_ERROR(checkpoint->Finish());
  return checkpoint;
}

// By content, for files without a telling name.
Opened OpenByMagic(const std::string& path, PathCheck check) {
  ASSIGN_OR_RETURN(const auto file, OpenChecked(check, path));
  std::array<unsigned char, 9> head{};
  const auto some = std::min<std::uint64_t>(file->size(), head.size());
  RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(head)).first(some)));
  const absl::string_view text(reinterpret_cast<const char*>(head.data()), some);
  if (absl::StartsWith(text, "GGUF")) return OpenGguf(path, std::move(check));
  // A zip archive (torch.save since 1.6) or a pickle of protocol 2 to 5.
  if (absl::StartsWith(text, "PK\x03\x04") || (head[0] == 0x80 && head[1] >= 2 && head[1] <= 5)) {
    return RefusePickle(path);
  }
  if (some == head.size() && head[8] == '{') return OpenSafetensorsFile(path, std::move(check));
  return absl::InvalidArgumentError(
      absl::StrCat(path, " is neither a safetensors nor a GGUF file: ", kConvert));
}

}  // namespace

Opened Checkpoint::Open(const std::string& path, PathCheck check) {
  std::error_code error;
  RETURN_IF_ERROR(Resolve(check, path).status());  // before a directory is listed
  if (fs::is_directory(path, error)) return OpenDirectory(path, std::move(check));
  if (!fs::exists(path, error)) return absl::NotFoundError(absl::StrCat("no model at ", path));
  if (absl::EndsWithIgnoreCase(path, ".gguf")) return OpenGguf(path, std::move(check));
  if (absl::EndsWithIgnoreCase(path, ".safetensors"))
    return OpenSafetensorsFile(path, std::move(check));
  if (IsPickleName(path)) return RefusePickle(path);
  return OpenByMagic(path, std::move(check));
}

absl::StatusOr<std::vector<float>> ReadVector(const Checkpoint& checkpoint,
                                              absl::string_view name) {
  const TensorInfo* tensor = checkpoint.Find(name);
  if (tensor == nullptr) {
    return absl::NotFoundError(absl::StrCat(checkpoint.path(), " has no tensor \"", name, "\""));
  }
  if (tensor->dtype != DType::kF32 && tensor->dtype != DType::kF16 &&
      tensor->dtype != DType::kBF16) {
    return absl::UnimplementedError(
        absl::StrCat("tensor \"", name, "\" has type ", TypeName(*tensor),
                     ", only F32, F16 and BF16 can be read as numbers"));
  }
  HostBuffer data(tensor->bytes);
  RETURN_IF_ERROR(checkpoint.Read(*tensor, data.bytes()));
  std::vector<float> out(tensor->bytes * 8 / static_cast<std::uint64_t>(BitsOf(tensor->dtype)));
  const auto halves = data.As<std::uint16_t>();
  switch (tensor->dtype) {
    case DType::kF16: std::transform(halves.begin(), halves.end(), out.begin(), F16ToF32); break;
    case DType::kBF16: std::transform(halves.begin(), halves.end(), out.begin(), Bf16ToF32); break;
    default: std::copy_n(data.As<float>().begin(), out.size(), out.begin());
  }
  return out;
}

std::string TypeName(const TensorInfo& tensor) {
  if (tensor.ggml_type < 0) return NameOf(tensor.dtype);
  const GgmlType* type = FindGgmlType(tensor.ggml_type);
  return type == nullptr ? absl::StrCat("ggml type ", tensor.ggml_type) : type->name;
}

}  // namespace nibble
