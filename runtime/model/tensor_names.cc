#include "runtime/model/tensor_names.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"

namespace nibble {
namespace {

constexpr absl::string_view kModel = "model.";

// In the order of preference; the empty one is a base model saved without its head.
constexpr const char* kPrefixes[] = {"model.", "language_model.model.", "model.language_model.",
                                     ""};

}  // namespace

NameResolver::NameResolver(const ModelConfig& config, const Checkpoint& checkpoint)
    : table_(checkpoint.kind() == CheckpointKind::kGguf
                 ? GgufNames()
                 : FindArchitecture(config.architecture)->hf_names) {
  absl::string_view norm = table_.final_norm;
  if (!absl::ConsumePrefix(&norm, kModel)) return;
  for (const char* prefix : kPrefixes) {
    if (checkpoint.Find(absl::StrCat(prefix, norm)) == nullptr) continue;
    prefix_ = prefix;
    return;
  }
}

std::string NameResolver::Get(const char* name, int layer, int expert) const {
  std::string filled = absl::StrReplaceAll(
      name, {{"{layer}", absl::StrCat(layer)}, {"{expert}", absl::StrCat(expert)}});
  if (!absl::StartsWith(filled, kModel)) return filled;
  return absl::StrCat(prefix_, filled.substr(kModel.size()));
}

}  // namespace nibble
