// The files of the page for people, embedded in the binary by server/page/CMakeLists.txt.
#pragma once

#include <span>

#include "absl/strings/string_view.h"

namespace nibble {

struct PageFile {
  absl::string_view path;  // "/", "/page/page.css"
  const char* content_type;
  absl::string_view content;
};

std::span<const PageFile> PageFiles();

}  // namespace nibble
