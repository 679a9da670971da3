#include "runtime/base/file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

class FileTest : public testing::Test {
 protected:
  FileTest() {
    std::string pattern = testing::TempDir() + "nibble_file_XXXXXX";
    dir_ = ::mkdtemp(pattern.data());
  }
  ~FileTest() override { std::filesystem::remove_all(dir_); }

  std::string Write(const std::string& text) const {
    const std::string path = (dir_ / "file").string();
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  std::filesystem::path dir_;
};

TEST_F(FileTest, ReadsRanges) {
  const auto file = *RandomAccessFile::Open(Write("0123456789"));
  EXPECT_EQ(file->size(), 10u);
  std::array<char, 4> out{};
  ASSERT_TRUE(file->Read(3, std::as_writable_bytes(std::span(out))).ok());
  EXPECT_EQ(std::string(out.data(), 4), "3456");
  ASSERT_TRUE(file->Read(6, std::as_writable_bytes(std::span(out))).ok());
  EXPECT_TRUE(file->Read(10, {}).ok()) << "nothing, at the end";
}

TEST_F(FileTest, PastTheEndIsOutOfRange) {
  const auto file = *RandomAccessFile::Open(Write("0123456789"));
  std::array<std::byte, 4> out{};
  for (const std::uint64_t offset : {std::uint64_t{7}, std::uint64_t{11}, ~std::uint64_t{0}}) {
    const absl::Status status = file->Read(offset, out);
    EXPECT_TRUE(absl::IsOutOfRange(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("10 bytes"));
  }
}

TEST_F(FileTest, AFileThatShrinksIsDataLoss) {
  const std::string path = Write("0123456789");
  const auto file = *RandomAccessFile::Open(path);
  std::filesystem::resize_file(path, 2);
  std::array<std::byte, 4> out{};
  EXPECT_TRUE(absl::IsDataLoss(file->Read(0, out)));
}

TEST_F(FileTest, OpenSaysWhatIsWrong) {
  EXPECT_TRUE(absl::IsNotFound(RandomAccessFile::Open((dir_ / "absent").string()).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(RandomAccessFile::Open(dir_.string()).status()));
  EXPECT_THAT(std::string(RandomAccessFile::Open((dir_ / "absent").string()).status().message()),
              HasSubstr("absent: No such file"));
}

TEST_F(FileTest, ReadTextFileIsBounded) {
  const std::string path = Write("hello");
  EXPECT_EQ(*ReadTextFile(path, 5), "hello");
  EXPECT_TRUE(absl::IsResourceExhausted(ReadTextFile(path, 4).status()));
  EXPECT_EQ(*ReadTextFile(Write(""), 0), "");
}

// A pipe would block an open for reading until somebody writes.
TEST_F(FileTest, APipeIsRefusedWithoutWaiting) {
  const std::string path = (dir_ / "pipe").string();
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(RandomAccessFile::Open(path).status()));
}

}  // namespace
}  // namespace nibble
