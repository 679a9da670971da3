#include "runtime/weights/checkpoint.h"

#include <filesystem>
#include <functional>
#include <set>
#include <thread>

#include "gmock/gmock.h"
#include "runtime/base/status.h"
#include "tests/weights/files.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TestTensor F32(const std::string& name, const std::vector<float>& values) {
  return {name, "F32", {static_cast<std::int64_t>(values.size())}, Raw(values)};
}

std::string Index(absl::string_view members) {
  return absl::StrCat(R"({"weight_map":{)", members, "}}");
}

TEST(CheckpointTest, OpensADirectory) {
  const TempDir dir;
  dir.Write("config.json", R"({"model_type":"llama"})");
  dir.Write("tokenizer.json", "{}");
  dir.Write("model.safetensors", Safetensors({F32("b", {1, 2}), F32("a", {3})}));

  NIBBLE_ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(dir.path().string()));

  EXPECT_EQ(checkpoint->kind(), CheckpointKind::kHuggingFace);
  EXPECT_EQ(checkpoint->config().Find("model_type")->AsString(), "llama");
  EXPECT_EQ(checkpoint->gguf(), nullptr);
  ASSERT_EQ(checkpoint->tensors().size(), 2u);
  EXPECT_EQ(checkpoint->tensors()[0].name, "a") << "sorted by name";
  EXPECT_EQ(checkpoint->Find("c"), nullptr);
  EXPECT_EQ(*checkpoint->ReadSideFile("tokenizer.json"), "{}");
  EXPECT_TRUE(absl::IsNotFound(checkpoint->ReadSideFile("absent.json").status()));
  for (const char* name : {"../model.safetensors", "/etc/hostname", "..", "", "a\\b"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(checkpoint->ReadSideFile(name).status())) << name;
  }
  EXPECT_THAT(*ReadVector(*checkpoint, "b"), ElementsAre(1, 2));
  EXPECT_TRUE(absl::IsNotFound(ReadVector(*checkpoint, "c").status()));
}

TEST(CheckpointTest, OpensOneFileWithTheConfigBesideIt) {
  const TempDir dir;
  dir.Write("config.json", R"({"x":1})");
  const std::string file =
      dir.Write("gptq_model-4bit-128g.safetensors", Safetensors({F32("a", {3})}));
  for (const std::string& path : {file, dir.path().string()}) {
    NIBBLE_ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(path));
    EXPECT_NE(checkpoint->config().Find("x"), nullptr);
  }
}

TEST(CheckpointTest, ReadVectorWidens) {
  const TempDir dir;
  const std::string file =
      dir.Write("x.safetensors", Safetensors({{"h", "F16", {2}, RawF16({0.5f, -3})},
                                              {"b", "BF16", {2}, RawBf16({2, -0.25f})},
                                              {"i", "I32", {1}, Raw(7)},
                                              {"odd", "U8", {1}, "x"},
                                              {"unaligned", "F32", {1}, Raw(1.5f)}}));
  NIBBLE_ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(file));
  EXPECT_THAT(*ReadVector(*checkpoint, "h"), ElementsAre(0.5f, -3));
  EXPECT_THAT(*ReadVector(*checkpoint, "b"), ElementsAre(2, -0.25f));
  EXPECT_THAT(*ReadVector(*checkpoint, "unaligned"), ElementsAre(1.5f));
  EXPECT_TRUE(absl::IsUnimplemented(ReadVector(*checkpoint, "i").status()));
}

TEST(CheckpointTest, AnIndexNamesTheShards) {
  const TempDir dir;
  dir.Write("model-00001-of-00002.safetensors", Safetensors({F32("a", {1})}));
  dir.Write("sub/model-00002-of-00002.safetensors",
            Safetensors({F32("b", {2}), F32("unnamed", {3})}));
  dir.Write("consolidated.safetensors", Safetensors({F32("a", {9}), F32("b", {9})}));  // a copy
  dir.Write(
      "model.safetensors.index.json",
      Index(
          R"("a":"model-00001-of-00002.safetensors","b":"sub/model-00002-of-00002.safetensors")"));

  NIBBLE_ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(dir.path().string()));

  EXPECT_EQ(checkpoint->tensors().size(), 3u);
  EXPECT_THAT(*ReadVector(*checkpoint, "a"), ElementsAre(1));
  EXPECT_THAT(*ReadVector(*checkpoint, "b"), ElementsAre(2));
}

struct Refused {
  const char* name;
  std::function<std::string(const TempDir&)> write;  // gives the path to open
  const char* reason;
};

std::string WithIndex(const TempDir& dir, absl::string_view members) {
  dir.Write("one.safetensors", Safetensors({F32("a", {1})}));
  dir.Write("two.safetensors", Safetensors({F32("a", {1}), F32("b", {1})}));
  dir.Write("model.safetensors.index.json", Index(members));
  return dir.path().string();
}

std::vector<Refused> RefusedCases() {
  return {
      {"NothingThere", [](const TempDir& d) { return (d.path() / "absent").string(); },
       "no model at"},
      {"EmptyDirectory", [](const TempDir& d) { return d.path().string(); }, "no .safetensors"},
      {"PickleByExtension", [](const TempDir& d) { return d.Write("model.bin", "x"); }, "pickle"},
      {"PickleByZipMagic", [](const TempDir& d) { return d.Write("model", "PK\x03\x04zzzzzzzz"); },
       "pickle"},
      {"PickleByProtocol", [](const TempDir& d) { return d.Write("model", "\x80\x02}q\x01zzzzz"); },
       "pickle"},
      {"DirectoryOfPickles",
       [](const TempDir& d) {
         d.Write("pytorch_model.bin", "x");
         return d.path().string();
       },
       "pickle"},
      {"PickleInTheIndex",
       [](const TempDir& d) { return WithIndex(d, R"("a":"pytorch_model.bin")"); }, "pickle"},
      {"UnknownContent", [](const TempDir& d) { return d.Write("model", "hello, world"); },
       "neither"},
      {"ShortContent", [](const TempDir& d) { return d.Write("model", "x"); }, "neither"},
      {"PickleNamedSafetensors",
       [](const TempDir& d) { return d.Write("model.safetensors", "PK\x03\x04zzzzzzzz"); },
       "header too large"},
      {"TwoFilesNoIndex",
       [](const TempDir& d) {
         d.Write("a.safetensors", Safetensors({}));
         d.Write("b.safetensors", Safetensors({}));
         return d.path().string();
       },
       "2 .safetensors files"},
      {"DirectoryOfGguf",
       [](const TempDir& d) {
         d.Write("m.gguf", "x");
         return d.path().string();
       },
       "name the file"},
      {"IndexLeavesTheDirectory",
       [](const TempDir& d) { return WithIndex(d, R"("a":"../one.safetensors")"); },
       "not a relative path inside"},
      {"IndexHidesTheWayOut",
       [](const TempDir& d) { return WithIndex(d, R"("a":"x/../../one.safetensors")"); },
       "not a relative path"},
      {"IndexIsAbsolute", [](const TempDir& d) { return WithIndex(d, R"("a":"/etc/passwd")"); },
       "not a relative path"},
      {"IndexHasABackslash",
       [](const TempDir& d) { return WithIndex(d, R"("a":"..\\one.safetensors")"); },
       "not a relative path"},
      {"IndexHasANul",
       [](const TempDir& d) { return WithIndex(d, "\"a\":\"one\\u0000.safetensors\""); },
       "not a relative path"},
      {"IndexValueIsANumber", [](const TempDir& d) { return WithIndex(d, R"("a":1)"); },
       "not a relative path"},
      {"IndexValueIsEmpty", [](const TempDir& d) { return WithIndex(d, R"("a":"")"); },
       "not a relative path"},
      {"ShardIsMissing",
       [](const TempDir& d) { return WithIndex(d, R"("a":"three.safetensors")"); }, "cannot open"},
      {"TensorIsMissing",
       [](const TempDir& d) {
         return WithIndex(d, R"("a":"one.safetensors","b":"one.safetensors")");
       },
       "tensor \"b\""},
      {"TensorIsInTheOtherShard",
       [](const TempDir& d) {
         d.Write("three.safetensors", Safetensors({F32("c", {1})}));
         return WithIndex(d, R"("b":"three.safetensors","a":"two.safetensors")");
       },
       "tensor \"b\""},
      {"TensorInTwoShards",
       [](const TempDir& d) {
         return WithIndex(d, R"("a":"one.safetensors","b":"two.safetensors")");
       },
       "remove one of the two"},
      {"IndexIsNoJson",
       [](const TempDir& d) {
         d.Write("model.safetensors.index.json", "{");
         return d.path().string();
       },
       "index.json"},
      {"IndexHasNoMap",
       [](const TempDir& d) {
         d.Write("model.safetensors.index.json", "{}");
         return d.path().string();
       },
       "weight_map"},
      {"ConfigIsNoJson",
       [](const TempDir& d) {
         d.Write("config.json", "{\"a\":1,\"a\":2}");
         return d.path().string();
       },
       "duplicate key"},
      {"ConfigIsAList",
       [](const TempDir& d) {
         d.Write("config.json", "[]");
         return d.path().string();
       },
       "not a JSON object"},
  };
}

class RefusedCheckpoint : public testing::TestWithParam<Refused> {};

TEST_P(RefusedCheckpoint, NamesTheReason) {
  const TempDir dir;
  const auto opened = Checkpoint::Open(GetParam().write(dir));
  ASSERT_FALSE(opened.ok());
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr(GetParam().reason));
}

INSTANTIATE_TEST_SUITE_P(Catalogue, RefusedCheckpoint, testing::ValuesIn(RefusedCases()),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST(CheckpointTest, OpensGgufByNameAndByMagic) {
  GgufWriter gguf;
  gguf.Text("general.architecture", "llama").Tensor("a", {2}, 0, Raw(std::vector<float>{1, 2}));
  const TempDir dir;
  for (const char* name : {"m.gguf", "blob"}) {
    NIBBLE_ASSERT_OK_AND_ASSIGN(const auto checkpoint,
                                Checkpoint::Open(dir.Write(name, gguf.Build())));
    EXPECT_EQ(checkpoint->kind(), CheckpointKind::kGguf);
    EXPECT_EQ(*checkpoint->gguf()->String("general.architecture"), "llama");
    EXPECT_TRUE(absl::IsNotFound(checkpoint->ReadSideFile("tokenizer.json").status()));
    EXPECT_THAT(*ReadVector(*checkpoint, "a"), ElementsAre(1, 2));
  }
}

// Part `no` of `count`, with one tensor.
std::string Part(std::uint16_t no, std::uint16_t count, std::int32_t tensors) {
  GgufWriter gguf;
  gguf.Key("split.no", 2, Raw(no)).Key("split.count", 2, Raw(count));
  gguf.Key("split.tensors.count", 5, Raw(tensors));
  gguf.Tensor(absl::StrCat("t", no), {1}, 0, Raw(static_cast<float>(no)));
  return gguf.Build();
}

TEST(CheckpointTest, OpensSplitGguf) {
  const TempDir dir;
  const std::string first = dir.Write("m-00001-of-00002.gguf", Part(0, 2, 2));
  const std::string second = dir.Write("m-00002-of-00002.gguf", Part(1, 2, 2));

  NIBBLE_ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(first));
  EXPECT_THAT(*ReadVector(*checkpoint, "t1"), ElementsAre(1));

  const auto not_first = Checkpoint::Open(second);
  EXPECT_THAT(std::string(not_first.status().message()), HasSubstr("name the first part"));
}

TEST(CheckpointTest, RefusesSplitsThatDoNotBelongTogether) {
  const TempDir dir;
  const std::string first = dir.Write("m-00001-of-00002.gguf", Part(0, 2, 2));
  EXPECT_THAT(std::string(Checkpoint::Open(first).status().message()),
              HasSubstr("m-00002-of-00002.gguf"));
  dir.Write("m-00002-of-00002.gguf", Part(2, 3, 2));
  EXPECT_THAT(std::string(Checkpoint::Open(first).status().message()), HasSubstr("part 2 of 2"));
  dir.Write("m-00002-of-00002.gguf", Part(1, 2, 2));
  dir.Write("m-00001-of-00002.gguf", Part(0, 2, 5));
  EXPECT_THAT(std::string(Checkpoint::Open(first).status().message()),
              HasSubstr("split.tensors.count"));
  const std::string renamed = dir.Write("renamed.gguf", Part(0, 2, 2));
  EXPECT_THAT(std::string(Checkpoint::Open(renamed).status().message()),
              HasSubstr("-00001-of-00002.gguf"));
  const std::string many = dir.Write("many.gguf", Part(0, 5000, 2));
  EXPECT_THAT(std::string(Checkpoint::Open(many).status().message()), HasSubstr("limit is 1000"));
}

TEST(CheckpointTest, RevisionFollowsTheContent) {
  const TempDir dir;
  std::vector<float> values(1000, 0.5f);
  const auto revision = [&](const std::vector<TestTensor>& tensors) {
    return *(*Checkpoint::Open(dir.Write("m.safetensors", Safetensors(tensors))))->Revision();
  };
  const std::string base = revision({F32("a", values), F32("b", {1})});
  EXPECT_EQ(base.size(), 32u);
  EXPECT_EQ(revision({F32("b", {1}), F32("a", values)}), base)
      << "the order in the file does not matter";
  EXPECT_NE(revision({F32("c", values), F32("b", {1})}), base);
  EXPECT_NE(revision({F32("a", values), F32("b", {2})}), base);
  values.back() = 0.25f;
  EXPECT_NE(revision({F32("a", values), F32("b", {1})}), base);
}

TEST(CheckpointTest, RevisionFollowsWhatDecidesAnAnswerBesideTheWeights) {
  const auto revision_of = [](const TempDir& dir) {
    return *(*Checkpoint::Open(dir.path().string()))->Revision();
  };
  const auto write = [](const TempDir& dir) {
    dir.Write("config.json", R"({"model_type":"llama"})");
    dir.Write("model.safetensors", Safetensors({F32("a", {1})}));
  };
  const TempDir dir, elsewhere;
  write(dir);
  write(elsewhere);
  std::set<std::string> seen = {revision_of(dir)};
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
                           "chat_template.jinja", "generation_config.json", "quantize_config.json",
                           "quant_config.json"}) {
    for (const char* text : {"{}", "{} "}) {
      dir.Write(file, text);
      EXPECT_TRUE(seen.insert(revision_of(dir)).second) << file << ": '" << text << "'";
      elsewhere.Write(file, text);
      EXPECT_EQ(revision_of(elsewhere), revision_of(dir)) << file;
    }
  }
  dir.Write("README.md", "words");
  EXPECT_FALSE(seen.insert(revision_of(dir)).second) << "no answer depends on it";
}

TEST(CheckpointTest, RevisionFollowsGgufKeys) {
  const TempDir dir;
  const auto revision = [&](GgufWriter gguf) {
    gguf.Tensor("a", {1}, 0, Raw(1.0f));
    return *(*Checkpoint::Open(dir.Write("m.gguf", gguf.Build())))->Revision();
  };
  const auto base = [] { return GgufWriter().Text("general.architecture", "llama"); };
  const auto tokens = [&](absl::string_view first, absl::string_view second) {
    return base().Key("tokenizer.ggml.tokens", 9,
                      absl::StrCat(Raw(std::uint32_t{8}), Raw(std::uint64_t{2}),
                                   GgufWriter::String(first), GgufWriter::String(second)));
  };
  const std::vector<std::function<GgufWriter()>> models = {
      base,
      [&] { return base().Text("tokenizer.chat_template", "a"); },
      [&] { return base().Text("tokenizer.chat_template", "b"); },
      [&] { return base().Key("tokenizer.ggml.eos_token_id", 4, Raw(std::uint32_t{2})); },
      [&] { return base().Key("tokenizer.ggml.eos_token_id", 4, Raw(std::uint32_t{3})); },
      [&] { return base().Key("llama.rope.freq_base", 6, Raw(1.5f)); },
      [&] { return base().Key("llama.rope.freq_base", 6, Raw(1.25f)); },
      [&] { return base().Key("tokenizer.ggml.add_bos_token", 7, std::string(1, '\0')); },
      [&] { return base().Key("tokenizer.ggml.add_bos_token", 7, std::string(1, '\1')); },
      [&] { return tokens("ab", "c"); },
      [&] { return tokens("a", "bc"); }};
  std::set<std::string> seen;
  for (std::size_t i = 0; i < models.size(); ++i) {
    EXPECT_TRUE(seen.insert(revision(models[i]())).second) << i;
    EXPECT_FALSE(seen.insert(revision(models[i]())).second) << i;
  }
}

// A check that resolves links, and refuses whatever is called as it was told.
TEST(CheckpointTest, EveryFileIsCheckedBeforeItIsOpened) {
  namespace fs = std::filesystem;
  const TempDir dir;
  fs::create_directory(dir.path() / "shards");
  dir.Write("config.json", "{}");
  dir.Write("tokenizer.json", "{}");
  dir.Write("model.safetensors.index.json", Index(R"("a":"shards/1.safetensors")"));
  dir.Write("shards/1.safetensors", Safetensors({F32("a", {3})}));
  dir.Write("alone.safetensors", Safetensors({F32("a", {3})}));
  dir.Write("m-00001-of-00002.gguf", Part(0, 2, 2));
  dir.Write("m-00002-of-00002.gguf", Part(1, 2, 2));
  dir.Write("blob", Part(0, 1, 1));
  std::string refused;
  const auto open = [&](const std::string& path) -> absl::Status {
    const PathCheck check = [&](const std::string& file) -> absl::StatusOr<std::string> {
      if (fs::path(file).filename() == refused) return absl::PermissionDeniedError(refused);
      if (!fs::exists(file)) return absl::NotFoundError(file);
      return file;
    };
    ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open((dir.path() / path).string(), check));
    return checkpoint->Revision().status();
  };
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {".",
       {".", "config.json", "model.safetensors.index.json", "1.safetensors", "tokenizer.json"}},
      {"alone.safetensors", {"alone.safetensors", "config.json", "tokenizer.json"}},
      {"m-00001-of-00002.gguf", {"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"}},
      {"blob", {"blob"}}};
  for (const auto& [path, files] : cases) {
    refused.clear();
    EXPECT_EQ(open(path), absl::OkStatus()) << path;
    for (const std::string& file : files) {
      refused = file;
      EXPECT_TRUE(absl::IsPermissionDenied(open(path))) << path << ": " << file;
    }
  }
}

TEST(CheckpointTest, AFileThatShrinksIsAStatus) {
  const TempDir dir;
  const std::string file =
      dir.Write("m.safetensors", Safetensors({F32("a", std::vector<float>(100'000, 1))}));
  NIBBLE_ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(file));
  std::filesystem::resize_file(file, 1000);
  EXPECT_TRUE(absl::IsDataLoss(ReadVector(*checkpoint, "a").status()));
}

TEST(CheckpointTest, ReadsFromSeveralThreads) {
  const TempDir dir;
  std::vector<TestTensor> tensors;
  for (int i = 0; i < 8; ++i) {
    tensors.push_back(F32(absl::StrCat("t", i), std::vector<float>(5000, static_cast<float>(i))));
  }
  NIBBLE_ASSERT_OK_AND_ASSIGN(const auto checkpoint,
                              Checkpoint::Open(dir.Write("m.safetensors", Safetensors(tensors))));
  std::vector<std::thread> threads;
  std::vector<int> right(8);
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      const auto read = ReadVector(*checkpoint, absl::StrCat("t", i));
      right[static_cast<std::size_t>(i)] = read.ok() && read->back() == static_cast<float>(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(right, testing::Each(1));
}

}  // namespace
}  // namespace nibble
