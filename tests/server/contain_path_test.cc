// What an administrator may load.
#include <filesystem>

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
}

// The Hugging Face cache: what a file is called says more than where it lies.
TEST_F(ContainPathTest, ALinkInsideKeepsItsName) {
  fs::create_directories(dir_.File("root/blobs"));
  dir_.Write("root/blobs/0123", "weights");
  fs::create_symlink("../blobs/0123", dir_.File("root/model/model.gguf"));
  const std::string root = fs::canonical(dir_.File("root")).string();
  EXPECT_EQ(PathBelow(root, "model/model.gguf").value(), root + "/model/model.gguf");
  EXPECT_EQ(ContainPath(root, "model/model.gguf").value(), root + "/blobs/0123");
}

TEST_F(ContainPathTest, RefusesOddPathsAndAbsentOnes) {
  EXPECT_EQ(CodeOf(""), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CodeOf(std::string("model\0x", 7)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CodeOf("absent"), absl::StatusCode::kNotFound);
  EXPECT_EQ(ContainPath("", "model").status().code(), absl::StatusCode::kPermissionDenied);
}

}  // namespace
}  // namespace nibble
