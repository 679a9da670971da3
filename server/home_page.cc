#include "server/home_page.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace nibble {
namespace {

std::string Escape(absl::string_view text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

const char* NameOf(ModelState state) {
  switch (state) {
    case ModelState::kLoading: return "loading";
    case ModelState::kServing: return "serving";
    case ModelState::kDraining: return "draining";
    case ModelState::kFailed: return "failed";
    case ModelState::kUnloaded: return "unloaded";
  }
  return "?";
}

std::string Row(const ModelStatus& status) {
  std::string row = absl::StrCat("<tr><td>", Escape(status.name), "<td>", NameOf(status.state));
  if (status.model == nullptr)
    return absl::StrCat(row, "<td colspan=5>", Escape(status.error), "\n");
  const ModelInfo& info = status.model->info;
  constexpr double kGiB = 1 << 30;
  absl::StrAppend(
      &row, "<td>", Escape(info.architecture), "<td>", Escape(info.format), "<td class=n>",
      absl::StrFormat("%.2f&thinsp;B", static_cast<double>(info.parameters) / 1e9), "<td class=n>",
      info.context, "<td class=n>",
      absl::StrFormat("%.2f GiB + %.2f GiB KV", static_cast<double>(info.plan.weights_bytes) / kGiB,
                      static_cast<double>(info.plan.kv_bytes) / kGiB),
      "\n");
  return row;
}

}  // namespace

std::string HomePage(const ServingState& state, const std::string& grpc_address) {
  std::string page =
      "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport "
      "content=\"width=device-width\">"
      "<title>Nibble</title><style>body{font:16px/1.5 "
      "system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
      "padding:0 1rem;color-scheme:light "
      "dark}table{border-collapse:collapse;width:100%}th,td{text-align:left;"
      "padding:.3rem .8rem .3rem 0;border-bottom:1px solid "
      "#8884}.n{text-align:right}</style><h1>Nibble</h1>";
  absl::StrAppend(&page, "<p>", state.Ready() ? "Ready." : "Not ready.",
                  " gRPC is served at <code>", Escape(grpc_address),
                  "</code> (nibble.v1, health and reflection).</p>",
                  "<table><tr><th>model<th>state<th>architecture<th>format<th class=n>parameters"
                  "<th class=n>context<th class=n>memory\n");
  for (const ModelStatus& status : state.List()) absl::StrAppend(&page, Row(status));
  absl::StrAppend(&page,
                  "</table><p><a href=/metrics>/metrics</a> <a href=/livez>/livez</a> <a "
                  "href=/readyz>/readyz</a>\n");
  return page;
}

}  // namespace nibble
