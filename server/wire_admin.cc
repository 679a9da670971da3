// What an administrator may ask for: load options and paths.
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "server/errors.h"
#include "server/values.h"
#include "server/wire.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t kMaxInt32 = 0x7fffffff;

// Takes a positive number that an int32 holds.
template <typename Target>
void TakeCount(const char* field, bool set, std::uint32_t value, Target* target,
               Violations* violations) {
  if (!set) return;
  if (value < 1 || value > kMaxInt32) {
    violations->Add(absl::StrCat("options.", field),
                    absl::StrCat("must be from 1 to ", kMaxInt32, ", is ", value));
    return;
  }
  *target = static_cast<std::int32_t>(value);
}

void TakeBytes(const char* field, bool set, std::int64_t value, std::optional<std::int64_t>* target,
               Violations* violations) {
  if (!set) return;
  if (value < 1)
    violations->Add(absl::StrCat("options.", field), absl::StrCat("must be positive, is ", value));
  *target = value;
}

// Takes a value that a flag spells the same way.
template <typename Parse, typename Target>
void TakeName(const char* field, bool set, const std::string& text, Parse parse, Target* target,
              Violations* violations) {
  if (!set) return;
  auto parsed = parse(text);
  if (!parsed.ok()) {
    violations->Add(absl::StrCat("options.", field), std::string(parsed.status().message()));
    return;
  }
  *target = *parsed;
}

absl::Status NotAllowed(absl::string_view why) {
  return WithReason(absl::PermissionDeniedError(why), "PATH_NOT_ALLOWED");
}

absl::StatusOr<fs::path> RealRoot(const std::string& root) {
  if (root.empty()) return NotAllowed("no path may be loaded: start the daemon with --model-root");
  std::error_code error;
  fs::path real = fs::canonical(root, error);
  if (error)
    return absl::FailedPreconditionError(
        absl::StrCat("--model-root ", root, ": ", error.message()));
  return real;
}

bool IsBelow(const fs::path& root, const fs::path& path) {
  const fs::path relative = path.lexically_relative(root);
  return !relative.empty() && *relative.begin() != "..";
}

struct AskedPath {
  fs::path root;  // without links
  fs::path path;  // below it by its spelling
};

absl::StatusOr<AskedPath> Ask(const std::string& root, absl::string_view path) {
  if (path.empty() || path.size() > 4096 || absl::StrContains(path, absl::string_view("\0", 1))) {
    return InvalidField(
        "path", absl::StrCat("must be a path of 1 to 4096 bytes without NUL, is ", Quote(path)));
  }
  ASSIGN_OR_RETURN(const fs::path real_root, RealRoot(root));
  const fs::path asked = (real_root / std::string(path)).lexically_normal();
  if (!IsBelow(real_root, asked))
    return NotAllowed(absl::StrCat("path ", Quote(path), " is not below --model-root"));
  return AskedPath{real_root, asked};
}

}  // namespace

absl::Status ApplyLoadOptions(const v1::LoadOptions& options, LoadSpec* spec) {
  Violations bad;
  TakeBytes("kv_memory_bytes", options.has_kv_memory_bytes(), options.kv_memory_bytes(),
            &spec->plan.kv_bytes, &bad);
  TakeBytes("memory_bytes", options.has_memory_bytes(), options.memory_bytes(),
            &spec->plan.memory_bytes, &bad);
  TakeCount("max_context", options.has_max_context(), options.max_context(),
            &spec->plan.max_context, &bad);
  TakeCount("max_batch", options.has_max_batch(), options.max_batch(), &spec->plan.max_batch, &bad);
  TakeCount("max_queue", options.has_max_queue(), options.max_queue(), &spec->max_queue, &bad);
  TakeName("kv_dtype", options.has_kv_dtype(), options.kv_dtype(), ParseKvDType,
           &spec->plan.kv_dtype, &bad);
  TakeName("compute", options.has_compute(), options.compute(), ParseCompute,
           &spec->backend.compute, &bad);
  spec->plan.compute = spec->backend.compute;
  TakeName("prefill_weights", options.has_prefill_weights(), options.prefill_weights(),
           ParsePrefillWeights, &spec->plan.prefill_weights, &bad);
  TakeName("quantize", options.has_quantize(), options.quantize(), ParseQuantization,
           &spec->quantize, &bad);
  TakeName("admission", options.has_admission(), options.admission(), ParseAdmission,
           &spec->admission, &bad);
  TakeCount("default_max_tokens", options.has_default_max_tokens(), options.default_max_tokens(),
            &spec->default_max_tokens, &bad);
  return bad.ToStatus();
}

absl::StatusOr<std::string> PathBelow(const std::string& root, absl::string_view path) {
  ASSIGN_OR_RETURN(const AskedPath asked, Ask(root, path));
  return asked.path.string();
}

absl::StatusOr<std::string> ContainPath(const std::string& root, absl::string_view path) {
  // What lies outside is refused before it is looked at, so that an answer does not tell whether it
  // exists.
  ASSIGN_OR_RETURN(const AskedPath asked, Ask(root, path));
  const std::string shown = Quote(asked.path.lexically_relative(asked.root).string());
  std::error_code error;
  const fs::path real = fs::canonical(asked.path, error);
  if (error)
    return absl::NotFoundError(
        absl::StrCat("path ", shown, " below --model-root: ", error.message()));
  if (!IsBelow(asked.root, real))
    return NotAllowed(absl::StrCat("path ", shown, " leads out of --model-root"));
  return real.string();
}

std::string DefaultModelName(absl::string_view path) {
  while (absl::EndsWith(path, "/")) path.remove_suffix(1);
  const std::size_t slash = path.rfind('/');
  absl::string_view name = slash == absl::string_view::npos ? path : path.substr(slash + 1);
  for (const absl::string_view extension : {".gguf", ".safetensors"}) {
    if (absl::EndsWith(name, extension)) name.remove_suffix(extension.size());
  }
  return std::string(name);
}

}  // namespace nibble
