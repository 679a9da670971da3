#include "server/options.h"

#include <functional>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "runtime/base/status.h"
#include "server/errors.h"
#include "server/http_prompt.h"
#include "server/option_sources.h"
#include "server/tenant.h"
#include "server/wire.h"

namespace nibble {
namespace {

constexpr std::int64_t kMaxInt32 = 0x7fffffff;

// One flag: how people give it, what it is when nobody does, and where it goes.
struct Flag {
  const char* name;
  const char* value;     // its kind in the help; "" for a switch
  const char* fallback;  // as text; "" leaves it unset
  const char* help;
  std::function<absl::Status(absl::string_view, ServeOptions*)> set;
};

// A setter that parses and assigns.
template <typename Parse, typename Member>
std::function<absl::Status(absl::string_view, ServeOptions*)> To(Member member, Parse parse) {
  return [member, parse](absl::string_view text, ServeOptions* options) -> absl::Status {
    ASSIGN_OR_RETURN(auto value, parse(text));
    options->*member = value;
    return absl::OkStatus();
  };
}

auto Text() {
  return [](absl::string_view text) -> absl::StatusOr<std::string> { return std::string(text); };
}

auto Number(std::int64_t low, std::int64_t high) {
  return [low, high](absl::string_view text) -> absl::StatusOr<std::int32_t> {
    ASSIGN_OR_RETURN(const std::int64_t value, ParseInteger(text, low, high));
    return static_cast<std::int32_t>(value);
  };
}

absl::StatusOr<LogFormat> ParseLogFormat(absl::string_view text) {
  if (text == "text") return LogFormat::kText;
  if (text == "json") return LogFormat::kJson;
  return absl::InvalidArgumentError(absl::StrCat(Quote(text), " is not one of text, json"));
}

absl::StatusOr<std::string> ParseDevice(absl::string_view text) {
  int ordinal = 0;
  const bool numbered =
      absl::StartsWith(text, "cuda:") && absl::SimpleAtoi(text.substr(5), &ordinal) && ordinal >= 0;
  if (text == "auto" || text == "cpu" || text == "cuda" || numbered) return std::string(text);
  return absl::InvalidArgumentError(
      absl::StrCat(Quote(text), " is not one of auto, cpu, cuda, cuda:N"));
}

// Where gRPC listens: HOST:PORT or unix:PATH.
absl::StatusOr<std::string> ParseGrpcAddress(absl::string_view text) {
  if (!absl::StartsWith(text, "unix:")) RETURN_IF_ERROR(ParseHostPort(text).status());
  return std::string(text);
}

absl::StatusOr<std::string> ParseHttpAddress(absl::string_view text) {
  if (text != "off") RETURN_IF_ERROR(ParseHostPort(text).status());
  return std::string(text);
}

// gRPC takes milliseconds in an int; it ignores 0.
absl::StatusOr<absl::Duration> ParseConnectionAge(absl::string_view text) {
  ASSIGN_OR_RETURN(const absl::Duration age, ParseDuration(text));
  if (age < absl::Seconds(1) || age > absl::Hours(576))
    return absl::InvalidArgumentError(absl::StrCat(Quote(text), " is not from 1s to 576h"));
  return age;
}

const std::vector<Flag>& Flags() {
  using O = ServeOptions;
  static const auto* flags = new std::vector<Flag>{
      {"listen", "HOST:PORT", "[::]:50051",
       "where gRPC is served; unix:/path works, port 0 picks one",
       To(&O::listen, ParseGrpcAddress)},
      {"http", "HOST:PORT", "[::]:8080",
       "where /metrics, /livez, /readyz and the page are served; off: nowhere",
       To(&O::http, ParseHttpAddress)},
      {"http-prompt", "", "false",
       "take prompts from the page too, in plain text and from whoever reaches --http",
       To(&O::http_prompt, ParseBool)},
      {"http-prompt-hosts", "NAMES", "",
       "host names, besides IP addresses and localhost, under which the page takes prompts",
       To(&O::http_prompt_hosts, ParseHostNames)},
      {"admin-listen", "HOST:PORT", "", "where AdminService is served; unset: nowhere",
       To(&O::admin_listen, ParseGrpcAddress)},
      {"model-root", "DIR", "", "the directory below which AdminService may load",
       To(&O::model_root, Text())},
      {"device", "NAME", "auto", "auto, cpu, cuda or cuda:N", To(&O::device, ParseDevice)},
      {"threads", "N", "0", "threads of the CPU backend; 0: the cgroup's quota",
       To(&O::threads, Number(0, 1024))},
      {"memory", "SIZE", "",
       "what all models may take: bytes, 20GiB, 90%; unset: 90% of the device's",
       To(&O::memory, ParseMemorySize)},
      {"kv-memory", "SIZE", "", "the KV pool of each model; unset: an equal share of what is left",
       To(&O::kv_memory, ParseMemorySize)},
      {"kv-dtype", "TYPE", "auto",
       "type of keys and values: auto, f32 (CPU), f16, bf16, fp8 (GPU), int8 (GPU)",
       To(&O::kv_dtype, ParseKvDType)},
      {"compute", "TYPE", "auto",
       "narrowest type activations may be rounded to: auto, f32 (exact), f16, bf16, fp8, int8",
       To(&O::compute, ParseCompute)},
      {"prefill-weights", "TYPE", "auto",
       "what prompts multiply by: packed, expanded (GPU: a second copy in 16 bits), or auto: as "
       "memory allows",
       To(&O::prefill_weights, ParsePrefillWeights)},
      {"max-context", "TOKENS", "", "tokens a sequence may hold; unset: the model's",
       To(&O::max_context, Number(1, kMaxInt32))},
      {"max-batch", "N", "", "sequences that may run at once; unset: from the plan",
       To(&O::max_batch, Number(1, 65536))},
      {"max-queue", "N", "256", "requests of a model that may wait",
       To(&O::max_queue, Number(1, 1'000'000))},
      {"max-itl", "TIME", "50ms", "the longest gap between tokens that prefill may cause",
       To(&O::max_itl, ParseDuration)},
      {"default-max-tokens", "N", "",
       "max_tokens of requests that name none; unset: to the end of the context",
       To(&O::default_max_tokens, Number(1, kMaxInt32))},
      {"quantize", "TYPE", "none",
       "quantize a 16-bit checkpoint at load: none, nf4, fp4, int8, int4",
       To(&O::quantize, ParseQuantization)},
      {"admission", "MODE", "optimistic", "optimistic, or reserved: never preempt",
       To(&O::admission, ParseAdmission)},
      {"deterministic", "", "false", "answers do not depend on what runs beside them",
       To(&O::deterministic, ParseBool)},
      {"tls-cert", "FILE", "", "PEM certificate chain: gRPC speaks TLS", To(&O::tls_cert, Text())},
      {"tls-key", "FILE", "", "PEM private key of tls-cert", To(&O::tls_key, Text())},
      {"tls-client-ca", "FILE", "", "PEM roots: clients must show a certificate",
       To(&O::tls_client_ca, Text())},
      {"tenant-metadata", "KEY", "",
       "metadata, set by an authenticating proxy, that names a call's tenant; unset: the request "
       "does",
       To(&O::tenant_metadata, ParseMetadataKey)},
      {"max-connection-age", "TIME", "", "connections are closed gently after that; unset: never",
       To(&O::max_connection_age, ParseConnectionAge)},
      {"drain-timeout", "TIME", "30s", "how long streams may go on after SIGTERM",
       To(&O::drain_timeout, ParseDuration)},
      {"log-format", "FORMAT", "", "text or json; unset: text on a terminal",
       To(&O::log_format, ParseLogFormat)},
      {"config", "FILE", "", "a YAML file of these settings, and `models`", nullptr},
      {"print-config", "", "false", "print the settings and where each comes from, then exit",
       To(&O::print_config, ParseBool)},
      {"help", "", "false", "print this", To(&O::help, ParseBool)},
  };
  return *flags;
}

std::vector<FlagName> FlagNames() {
  std::vector<FlagName> names;
  for (const Flag& flag : Flags()) names.push_back({flag.name, flag.value[0] == '\0'});
  return names;
}

void Overlay(RawOptions layer, RawOptions* onto) {
  for (auto& [name, value] : layer.values) onto->values[name] = std::move(value);
  if (layer.models.has_value()) {
    onto->models = std::move(layer.models);
    onto->models_source = std::move(layer.models_source);
  }
}

std::string YamlQuote(absl::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted.push_back('\\');
    quoted.push_back(c);
  }
  return quoted + "\"";
}

std::string PrintConfig(const RawOptions& raw) {
  std::string out;
  if (raw.models.has_value()) {
    absl::StrAppend(&out, "models:  # ", raw.models_source, "\n");
    for (const std::string& model : *raw.models)
      absl::StrAppend(&out, "  - ", YamlQuote(model), "\n");
  }
  for (const Flag& flag : Flags()) {
    const std::string name = flag.name;
    if (name == "config" || name == "print-config" || name == "help") continue;
    const RawOptions::Value& value = raw.values.at(name);
    if (value.text.empty()) {
      absl::StrAppend(&out, "# ", name, " is unset\n");
    } else {
      absl::StrAppend(&out, name, ": ", YamlQuote(value.text), "  # ", value.source, "\n");
    }
  }
  return out;
}

absl::Status CheckTogether(const ServeOptions& options) {
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key go together: set both or none");
  }
  if (!options.tls_client_ca.empty() && options.tls_cert.empty()) {
    return absl::InvalidArgumentError("--tls-client-ca needs --tls-cert and --tls-key");
  }
  if (options.http_prompt && !options.tls_client_ca.empty()) {
    return absl::InvalidArgumentError(
        "--http-prompt and --tls-client-ca exclude each other: the HTTP port asks for no "
        "certificate, so that anybody could send prompts; drop one of them");
  }
  if (options.http_prompt && !options.tenant_metadata.empty()) {
    return absl::InvalidArgumentError(
        "--http-prompt and --tenant-metadata exclude each other: the HTTP port authenticates "
        "nobody; drop one of them");
  }
  if (options.http_prompt && (options.http.empty() || options.http == "off"))
    return absl::InvalidArgumentError("--http-prompt needs --http HOST:PORT, which is off");
  if (!options.http_prompt_hosts.empty() && !options.http_prompt)
    return absl::InvalidArgumentError("--http-prompt-hosts does nothing without --http-prompt");
  if (options.models.empty() && options.admin_listen.empty()) {
    return absl::InvalidArgumentError(
        "no MODEL: name a checkpoint to serve, or set --admin-listen to load one later");
  }
  for (std::size_t i = 0; i < options.models.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (options.models[i].name == options.models[j].name) {
        return absl::InvalidArgumentError(absl::StrCat("two models have the name ",
                                                       Quote(options.models[i].name),
                                                       ": give one another, NAME=PATH"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelOption> ParseModelOption(absl::string_view text) {
  ModelOption model;
  const std::vector<std::string> parts = absl::StrSplit(text, ',');
  std::string path = parts[0];
  bool in_settings = false;
  for (std::size_t i = 1; i < parts.size(); ++i) {
    const std::pair<std::string, std::string> setting =
        absl::StrSplit(parts[i], absl::MaxSplits('=', 1));
    if (!absl::StrContains(parts[i], '=') && !in_settings) {
      absl::StrAppend(&path, ",", parts[i]);  // a comma of the path
      continue;
    }
    in_settings = true;
    if (setting.first == "device") {
      ASSIGN_OR_RETURN(model.device, ParseDevice(setting.second));
    } else if (setting.first == "kv-memory") {
      ASSIGN_OR_RETURN(model.kv_memory, ParseMemorySize(setting.second));
    } else if (setting.first == "max-context") {
      ASSIGN_OR_RETURN(const std::int64_t tokens, ParseInteger(setting.second, 1, kMaxInt32));
      model.max_context = static_cast<std::int32_t>(tokens);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat(Quote(text), ": there is no model setting ", Quote(setting.first),
                       "; there are device, kv-memory and max-context"));
    }
  }
  const std::size_t equals = path.find('=');
  if (equals != std::string::npos && ValidateModelName(path.substr(0, equals)).ok()) {
    model.name = path.substr(0, equals);
    path = path.substr(equals + 1);
  } else {
    model.name = DefaultModelName(path);
  }
  model.path = path;
  if (model.path.empty())
    return absl::InvalidArgumentError(absl::StrCat(Quote(text), ": has no path"));
  if (const absl::Status bad = ValidateModelName(model.name); !bad.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quote(text), ": ", std::string(bad.message()), "; name it with NAME=PATH"));
  }
  return model;
}

absl::StatusOr<ServeOptions> ParseServeOptions(const std::vector<std::string>& arguments,
                                               const std::vector<std::string>& environment) {
  ServeOptions options;
  const std::vector<FlagName> names = FlagNames();
  ASSIGN_OR_RETURN(RawOptions command_line, ReadCommandLine(arguments, names));
  ASSIGN_OR_RETURN(RawOptions variables, ReadEnvironment(environment, names, &options.warnings));

  RawOptions raw;
  for (const Flag& flag : Flags()) raw.values[flag.name] = {flag.fallback, "default"};
  for (const RawOptions* layer : {&command_line, &variables}) {
    const auto config = layer->values.find("config");
    if (config == layer->values.end() || config->second.text.empty()) continue;
    ASSIGN_OR_RETURN(RawOptions file, ReadConfigFile(config->second.text, names));
    Overlay(std::move(file), &raw);
    break;
  }
  Overlay(std::move(variables), &raw);
  Overlay(std::move(command_line), &raw);

  for (const Flag& flag : Flags()) {
    const RawOptions::Value& value = raw.values.at(flag.name);
    if (value.text.empty() || flag.set == nullptr) continue;
    if (const absl::Status status = flag.set(value.text, &options); !status.ok()) {
      const bool variable = absl::StartsWith(value.source, "NIBBLE_");
      const std::string where = variable ? value.source
                                : value.source == "command line"
                                    ? absl::StrCat("--", flag.name)
                                    : absl::StrCat(value.source, ": ", flag.name);
      return absl::InvalidArgumentError(absl::StrCat(where, ": ", std::string(status.message())));
    }
  }
  if (options.help) return options;
  for (const std::string& model : raw.models.value_or(std::vector<std::string>{})) {
    ASSIGN_OR_RETURN(ModelOption parsed, ParseModelOption(model));
    options.models.push_back(std::move(parsed));
  }
  options.config_text = PrintConfig(raw);
  if (!options.print_config) RETURN_IF_ERROR(CheckTogether(options));
  if (options.http_prompt && !options.tls_cert.empty()) {
    options.warnings.emplace_back(
        "--http-prompt takes prompts in plain text, though gRPC speaks TLS: keep the HTTP port "
        "where nobody listens in");
  }
  return options;
}

std::string ServeHelp() {
  std::string help =
      "usage: nibble serve [FLAGS] MODEL...\n\n"
      "Serves models over gRPC. MODEL is a Hugging Face directory, a .safetensors or a .gguf "
      "file:\n"
      "PATH or NAME=PATH[,device=NAME][,kv-memory=SIZE][,max-context=TOKENS]. The first is the "
      "default\n"
      "of requests.\n\n";
  for (const Flag& flag : Flags()) {
    std::string left =
        absl::StrCat("  --", flag.name, flag.value[0] == '\0' ? "" : " ", flag.value);
    left.resize(std::max<std::size_t>(left.size() + 1, 30), ' ');
    const bool shown = flag.fallback[0] != '\0' && flag.value[0] != '\0';
    absl::StrAppend(&help, left, flag.help, shown ? absl::StrCat(" (", flag.fallback, ")") : "",
                    "\n");
  }
  absl::StrAppend(
      &help,
      "\nEvery flag may also come from the environment (--kv-memory: NIBBLE_KV_MEMORY; models:\n"
      "NIBBLE_MODELS) or from the file of --config; a flag wins over the environment, that over "
      "the\n"
      "file. Exit status: 0 done or drained, 1 failed at work, 2 bad usage or configuration, 3 a "
      "model\n"
      "cannot be served, 4 device lost.\n");
  return help;
}

}  // namespace nibble
