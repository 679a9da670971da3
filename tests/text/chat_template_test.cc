#include "runtime/text/chat_template.h"

#include <ctime>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/civil_time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/conformance.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

// What goldens/render_templates.py renders at.
absl::Time Now() {
  return absl::FromCivil(absl::CivilSecond(2025, 3, 9, 14, 5, 7), absl::LocalTimeZone()) +
         absl::Microseconds(123);
}

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::filesystem::path Goldens() {
  return std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests" / "text" / "goldens";
}

Json ReadJson(const std::filesystem::path& path) {
  absl::StatusOr<Json> json = ParseJson(ReadFile(path));
  EXPECT_TRUE(json.ok()) << path << ": " << json.status();
  return json.ok() ? *std::move(json) : Json(Json::Object{});
}

absl::StatusOr<std::string> Render(absl::string_view source,
                                   const Json& variables = Json(Json::Object{}),
                                   const TemplateLimits& limits = {}) {
  absl::StatusOr<std::unique_ptr<ChatTemplate>> parsed = ChatTemplate::Parse(source, limits);
  if (!parsed.ok()) return parsed.status();
  return (*parsed)->Render(variables, Now());
}

// 64-bit FNV-1a, which stands for what templates of others render to.
std::string Hash(absl::string_view text) {
  std::uint64_t value = 0xCBF29CE484222325;
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  return absl::StrCat(absl::Hex(value, absl::kZeroPad16));
}

// `golden` has what Jinja2 made of it: "output" or its hash "fnv1a", or "error".
void ExpectAsRecorded(absl::string_view source, const Json& variables, const Json& golden) {
  const absl::StatusOr<std::string> rendered = Render(source, variables);
  if (const Json* output = golden.Find("output")) {
    ASSERT_TRUE(rendered.ok()) << rendered.status();
    EXPECT_EQ(*rendered, output->AsString());
  } else if (const Json* hash = golden.Find("fnv1a")) {
    ASSERT_TRUE(rendered.ok()) << rendered.status();
    EXPECT_EQ(Hash(*rendered), hash->AsString()) << *rendered;
  } else {
    EXPECT_FALSE(rendered.ok()) << "rendered as " << *rendered
                                << ", where Jinja2 fails: " << golden.Find("error")->AsString();
  }
}

// Every template of `folder` that `goldens` knows, over every conversation. Returns how many
// templates there were.
int RenderFolder(const std::filesystem::path& folder, const Json& goldens) {
  const Json conversations = ReadJson(Goldens() / "conversations.json");
  int templates = 0;
  for (const auto& [file, golden] : goldens.AsObject()) {
    const std::string source = ReadFile(folder / file);
    if (static_cast<std::int64_t>(source.size()) != golden.Find("bytes")->AsInt64())
      continue;  // absent, or another version
    ++templates;
    for (const auto& [name, rendering] : golden.Find("renderings")->AsObject()) {
      SCOPED_TRACE(absl::StrCat(file, " over ", name));
      ExpectAsRecorded(source, *conversations.Find(name), rendering);
    }
  }
  return templates;
}

TEST(ChatTemplateTest, SnippetsRenderAsJinja2) {
  const Json goldens = ReadJson(Goldens() / "snippets.json");
  for (const Json& snippet : goldens.Find("snippets")->AsArray()) {
    const std::string& source = snippet.Find("template")->AsString();
    SCOPED_TRACE(source);
    ExpectAsRecorded(source, *goldens.Find("variables"), snippet);
  }
}

TEST(ChatTemplateTest, FamiliesRenderAsJinja2) {
  const Json goldens = ReadJson(Goldens() / "templates.json");
  EXPECT_EQ(RenderFolder(Goldens() / "templates", goldens),
            static_cast<int>(goldens.AsObject().size()));
}

TEST(ChatTemplateTest, RealModelsRenderAsJinja2) {
  NIBBLE_REQUIRE_CONFORMANCE(conformance);
  const int templates =
      RenderFolder(conformance / "templates", ReadJson(Goldens() / "conformance_templates.json"));
  if (templates == 0) GTEST_SKIP() << "no known template in " << conformance / "templates";
}

TEST(ChatTemplateTest, SmolLm2ChatsRenderAsLlamaCpp) {
  NIBBLE_REQUIRE_CONFORMANCE(conformance);
  const std::filesystem::path file = conformance / "smollm2" / "chat.json";
  if (!std::filesystem::exists(file)) GTEST_SKIP() << file << " is absent";
  const Json chats = ReadJson(file);
  for (const Json& chat : chats.Find("cases")->AsArray()) {
    Json variables = Json(Json::Object{});
    variables.Set("messages", *chat.Find("messages"));
    variables.Set("add_generation_prompt", true);
    const absl::StatusOr<std::string> rendered =
        Render(chats.Find("chat_template")->AsString(), variables);
    ASSERT_TRUE(rendered.ok()) << rendered.status();
    EXPECT_EQ(*rendered, chat.Find("rendered_prompt")->AsString());
  }
}

TEST(ChatTemplateTest, ErrorsNameLineAndReason) {
  const auto message = [](absl::string_view source) {
    return std::string(Render(source).status().message());
  };
  EXPECT_THAT(
      message("a\nb\n{% if x %}\n{{ raise_exception('no system role') }}{% endif %}{{ y.z }}"),
      HasSubstr("line 4: 'y' is undefined"));
  EXPECT_THAT(message("\n{% for x in [1] %}\n{{ raise_exception('no ' ~ x) }}\n{% endfor %}"),
              HasSubstr("line 3: no 1"));
  EXPECT_THAT(message("\n\n{{ 1 + }}"), HasSubstr("line 3: expected an expression"));
  EXPECT_THAT(message("{{ 'a' + 1 }}"), HasSubstr("can only concatenate str"));
}

TEST(ChatTemplateTest, UnknownPartsAreUnimplemented) {
  for (const char* source :
       {"{{ 1 | xmlattr }}", "{{ 1 is weird }}", "{% include 'x' %}", "{% import 'x' as y %}",
        "{% extends 'x' %}", "{% block x %}{% endblock %}",
        "{% for x in y recursive %}{% endfor %}"}) {
    EXPECT_EQ(ChatTemplate::Parse(source).status().code(), absl::StatusCode::kUnimplemented)
        << source;
  }
  // Not reached, not missed: as in Jinja.
  EXPECT_EQ(*Render("{% if x %}{{ 1 | weird }}{% endif %}{{ 1 if true else 2 | weird }}"), "1");
}

TEST(ChatTemplateTest, SandboxShowsNoInternalsAndChangesNothing) {
  Json variables = Json(Json::Object{});
  variables.Set("l", Json(Json::Array{Json(1)}));
  for (const char* source :
       {"{{ ''.__class__.__mro__ }}", "{{ l.__init__.__globals__ }}", "{{ l.append(2) }}",
        "{{ l.clear() }}", "{{ range.__globals__.os }}", "{{ lipsum.__globals__ }}",
        "{{ self._TemplateReference__context }}", "{{ l|attr('append')(1) }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}", "{{ open('/etc/passwd') }}"}) {
    EXPECT_EQ(Render(source, variables).status().code(), absl::StatusCode::kInvalidArgument)
        << source;
  }
}

TEST(ChatTemplateTest, VariablesKeepTheirIntegersAndOrder) {
  const absl::StatusOr<Json> variables =
      ParseJson(R"({"v": {"z": 18446744073709551615, "a": 1.0, "m": -9223372036854775808}})");
  ASSERT_TRUE(variables.ok());
  EXPECT_EQ(*Render("{{ v | tojson }}", *variables),
            R"({"z": 18446744073709551615, "a": 1.0, "m": -9223372036854775808})");
}

TEST(ChatTemplateTest, OneTemplateRendersOnManyThreads) {
  const auto parsed = ChatTemplate::Parse(
      "{% for i in range(200) %}{{ 'x' ~ (i * n) }}{% set q = namespace(a=i) %}{{ q.a }}{% endfor "
      "%}");
  ASSERT_TRUE(parsed.ok());
  Json variables = Json(Json::Object{});
  variables.Set("n", 3);
  const std::string expected = *(*parsed)->Render(variables, Now());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) EXPECT_EQ(*(*parsed)->Render(variables, Now()), expected);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// --- budgets

std::string Repeat(absl::string_view text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) absl::StrAppend(&out, text);
  return out;
}

TEST(ChatTemplateLimitsTest, DeepSourceIsRefused) {
  const std::vector<std::string> sources = {
      absl::StrCat("{{ ", Repeat("(", 6000), "1", Repeat(")", 6000), " }}"),
      absl::StrCat("{{ ", Repeat("[", 6000), Repeat("]", 6000), " }}"),
      absl::StrCat("{{ ", Repeat("{1:", 6000), "1", Repeat("}", 6000), " }}"),
      absl::StrCat("{{ ", Repeat("not ", 6000), "1 }}"),
      absl::StrCat("{{ ", Repeat("-", 6000), "1 }}"),
      absl::StrCat("{{ x", Repeat(".a", 6000), " }}"),
      absl::StrCat("{{ x", Repeat("[0]", 6000), " }}"),
      absl::StrCat("{{ x", Repeat("()", 6000), " }}"),
      absl::StrCat("{{ x", Repeat("|trim", 6000), " }}"),
      absl::StrCat("{{ ", Repeat("1 if 1 else ", 6000), "1 }}"),
      absl::StrCat("{{ 1", Repeat(" if 1", 6000), " }}"),
      absl::StrCat("{{ ", Repeat("f(", 6000), Repeat(")", 6000), " }}"),
      absl::StrCat("{{ ", Repeat("x[", 6000), "1", Repeat("]", 6000), " }}"),
      absl::StrCat("{{ x is ", Repeat("eq(1 is ", 6000), "}}"),
      absl::StrCat("{% set ", Repeat("(", 6000), "a", Repeat(")", 6000), " = 1 %}"),
      absl::StrCat(Repeat("{% if 1 %}", 6000), Repeat("{% endif %}", 6000)),
      absl::StrCat(Repeat("{% for x in y %}", 6000), Repeat("{% endfor %}", 6000)),
      absl::StrCat(Repeat("{% macro m() %}", 6000), Repeat("{% endmacro %}", 6000)),
      absl::StrCat(Repeat("{% filter trim %}", 6000), Repeat("{% endfilter %}", 6000)),
      Repeat("{{", 6000),
      Repeat("{%", 6000),
      Repeat("(", 6000),
      Repeat("{#", 6000),
      Repeat("{% raw %}", 6000),
  };
  for (const std::string& source : sources) {
    const absl::Status status = ChatTemplate::Parse(source).status();
    if (source[0] == '(') continue;  // mere text
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument)
        << source.substr(0, 40) << ": " << status;
  }
}

TEST(ChatTemplateLimitsTest, LongFlatSourceIsFine) {
  EXPECT_EQ(*Render(absl::StrCat("{{ 1", Repeat(" + 1", 5000), " }}")), "5001");
  EXPECT_EQ(*Render(absl::StrCat("{{ 1", Repeat(" and 1", 5000), " }}")), "1");
  EXPECT_EQ(Render(absl::StrCat("{{ 1", Repeat(" ~ 1", 5000), " }}"))->size(), 5001u);
  EXPECT_EQ(
      *Render(absl::StrCat("{% if 0 %}", Repeat("{% elif 0 %}", 5000), "{% else %}x{% endif %}")),
      "x");
  EXPECT_EQ(Render(Repeat("{{ 1 }}", 5000))->size(), 5000u);
  EXPECT_EQ(*Render(absl::StrCat("{{ [", Repeat("1,", 5000), "] | length }}")), "5000");
}

TEST(ChatTemplateLimitsTest, EndlessWorkRunsOutOfBudget) {
  const std::vector<std::string> sources = {
      "{{ 'a' * 1000000000 }}",
      "{{ [0] * 1000000000 }}",
      "{{ 'a' * 9223372036854775807 }}",
      "{{ 'abc' * 3074457345618258603 }}",
      "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}",
      "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
      "{% macro m(x) %}{{ caller() }}{% call m(x) %}{{ caller }}{% endcall %}{% endmacro %}{% call "
      "m(1) %}{% endcall %}",
      "{% set ns = namespace(s='a') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% "
      "endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(64) %}{% set ns.l = ns.l + ns.l %}{% "
      "endfor %}",
      "{% set ns = namespace(l=[]) %}{% for i in range(50000) %}{% set ns.l = [ns.l] %}{% endfor "
      "%}",
      "{% set ns = namespace(l={}) %}{% for i in range(50000) %}{% set ns.l = {'a': ns.l} %}{% "
      "endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% "
      "endfor %}{{ ns.l }}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% "
      "endfor %}{{ ns.l | tojson }}",
      "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] "
      "%}{% set ns.b = [ns.b, ns.b] %}"
      "{% endfor %}{{ ns.a == ns.b }}",
      "{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns }}",
      "{% set ns = namespace(m=none) %}{% for i in range(50000) %}{% macro m() %}{{ i }}{% "
      "endmacro %}{% set ns.m = m %}{% endfor %}"
      "{% for i in range(100000) %}{% for j in range(100) %}{{ ns.m() }}{% endfor %}{% endfor %}",
      "{{ 'x'.center(1000000000) }}",
      "{{ 'x'.ljust(9223372036854775807) }}",
      "{{ 'x'.zfill(1000000000) }}",
      "{{ '\\t'.expandtabs(1000000000) }}",
      "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
      "{{ ('a' * 100000) | replace('', 'b' * 100000) }}",
      "{{ ('a' * 100000) | join('b' * 1000) }}",
      "{{ ('a' * 1000) | indent(1000000000) }}",
      "{{ ('\\n' * 100000) | indent(10000, blank=true) }}",
      "{{ [1, [2]] | tojson(indent=1000000000) }}",
      "{{ [1] | batch(1000000000, 0) | list }}",
      "{{ [1] | slice(1000000000) | list }}",
      "{{ '%999999999d' % 1 }}",
      "{{ '{:999999999}'.format(1) }}",
      "{{ range(1000000000) }}",
      "{% for i in range(90000) %}{{ strftime_now('%c' * 10000) }}{% endfor %}",
      "{% set s = 'ab' * 4000000 %}{% for i in range(100000) %}{% if s + 'x' in s %}{% endif %}{% "
      "endfor %}",
      "{% set s = 'ab' * 4000000 %}{% for i in range(100000) %}{% if s == s[1:] + 'b' %}{% endif "
      "%}{% endfor %}",
      "{% set s = 'ab' * 4000000 %}{% for i in range(100000) %}{% set x = s | length %}{% endfor "
      "%}",
      "{% set l = range(100000) | list %}{% for i in l %}{% if -1 in l %}{% endif %}{% endfor %}",
      "{% set l = range(100000) | list %}{{ l | unique | list | length }}",
      "{% set l = range(100000) | list %}{% for i in l %}{% set x = l | sort %}{% endfor %}",
  };
  TemplateLimits limits;
  limits.max_steps = 200'000;
  for (const std::string& source : sources) {
    const std::clock_t start = std::clock();
    const absl::Status status = Render(source, Json(Json::Object{}), limits).status();
    EXPECT_TRUE(absl::IsResourceExhausted(status) || absl::IsInvalidArgument(status))
        << source << ": " << status;
    EXPECT_LT((std::clock() - start) / CLOCKS_PER_SEC, 10) << source;
  }
  EXPECT_TRUE(absl::IsResourceExhausted(Render("{{ 'a' * 1000000000 }}").status()));
  EXPECT_TRUE(absl::IsResourceExhausted(
      Render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
          .status()));
}

TEST(ChatTemplateLimitsTest, LimitsAreThoseGiven) {
  TemplateLimits limits;
  limits.max_output_bytes = 100;
  EXPECT_EQ(Render("{{ 'a' * 100 }}", Json(Json::Object{}), limits)->size(), 100u);
  EXPECT_TRUE(
      absl::IsResourceExhausted(Render("{{ 'a' * 100 }}b", Json(Json::Object{}), limits).status()));
  EXPECT_TRUE(
      absl::IsResourceExhausted(Render("{{ 'a' * 101 }}", Json(Json::Object{}), limits).status()));
  limits = {};
  limits.max_steps = 100;
  EXPECT_TRUE(absl::IsResourceExhausted(
      Render("{% for i in range(100) %}{{ i }}{% endfor %}", Json(Json::Object{}), limits)
          .status()));
  limits = {};
  limits.max_source_bytes = 10;
  EXPECT_TRUE(absl::IsInvalidArgument(ChatTemplate::Parse("12345678901", limits).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ChatTemplate::Parse("\xff").status()));
}

TEST(ChatTemplateLimitsTest, DeepVariablesAreRefused) {
  Json deep = Json(Json::Array{});
  for (int i = 0; i < 400; ++i) {
    Json::Array outer;
    outer.push_back(std::move(deep));
    deep = Json(std::move(outer));
  }
  Json variables = Json(Json::Object{});
  variables.Set("deep", std::move(deep));
  EXPECT_TRUE(absl::IsInvalidArgument(Render("{{ deep }}", variables).status()));
}

}  // namespace
}  // namespace nibble
