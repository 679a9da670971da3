// What an administrator may load.
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/wire.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

class ContainPathTest : public ::testing::Test {
 protected:
  ContainPathTest() {
    fs::create_directories(dir_.File("root/model"));
    fs::create_directories(dir_.File("root-too"));
    dir_.Write("root/model/config.json", "{}");
    dir_.Write("secret", "s");
  }
  absl::StatusCode CodeOf(const std::string& path) {
    return ContainPath(dir_.File("root"), path).status().code();
  }

  TempDir dir_;
};

TEST_F(ContainPathTest, TakesPathsBelowTheRoot) {
  const std::string real = fs::canonical(dir_.File("root/model")).string();
  for (const std::string& path : {std::string("model"), std::string("./model/"),
                                  dir_.File("root/model"), std::string("model/../model")}) {
    const auto contained = ContainPath(dir_.File("root"), path);
    ASSERT_TRUE(contained.ok()) << path << ": " << contained.status();
    EXPECT_EQ(fs::canonical(*contained).string(), real) << path;
  }
}

TEST_F(ContainPathTest, RefusesWhatLiesOutside) {
  for (const std::string& path :
       {std::string("../secret"), dir_.File("secret"), std::string("/etc/passwd"),
        std::string("../root-too"), dir_.File("root-too"), std::string("../no-such"),
        std::string("model/../../secret")}) {
    EXPECT_EQ(CodeOf(path), absl::StatusCode::kPermissionDenied) << path;
  }
}

TEST_F(ContainPathTest, FollowsSymbolicLinks) {
  fs::create_symlink(dir_.File("secret"), dir_.File("root/link"));
  fs::create_directory_symlink(dir_.path(), dir_.File("root/up"));
  EXPECT_EQ(CodeOf("link"), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(CodeOf("up/secret"), absl::StatusCode::kPermissionDenied);

  // A link among the files of a model counts like the path itself.
  fs::create_symlink(dir_.File("secret"), dir_.File("root/model/tokenizer.json"));
  EXPECT_EQ(CodeOf("model"), absl::StatusCode::kPermissionDenied);
}

TEST_F(ContainPathTest, FollowsSymbolicLinksOfFolders) {
  fs::create_directories(dir_.File("root/model/shards"));
  EXPECT_EQ(CodeOf("model"), absl::StatusCode::kOk);
  fs::create_symlink(dir_.File("nowhere"), dir_.File("root/model/shards/dangling"));
  EXPECT_EQ(CodeOf("model"), absl::StatusCode::kOk);
  fs::create_symlink(dir_.File("secret"), dir_.File("root/model/shards/1.safetensors"));
  EXPECT_EQ(CodeOf("model"), absl::StatusCode::kPermissionDenied);
}

TEST_F(ContainPathTest, RefusesToLookThroughWholeTrees) {
  std::string deep = "root/model";
  for (int level = 0; level < 20; ++level) absl::StrAppend(&deep, "/d");
  fs::create_directories(dir_.File(deep));
  EXPECT_EQ(CodeOf("model"), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ContainPathTest, RefusesOddPathsAndAbsentOnes) {
  EXPECT_EQ(CodeOf(""), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CodeOf(std::string("model\0x", 7)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CodeOf("absent"), absl::StatusCode::kNotFound);
  EXPECT_EQ(ContainPath("", "model").status().code(), absl::StatusCode::kPermissionDenied);
}

}  // namespace
}  // namespace nibble
