// What the benches of products have in common: shapes, how far weights rotate, lists of arguments.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

namespace nibble::cuda::bench {

constexpr std::int64_t kRotation = 400LL << 20;  // bytes of weights walked through between two uses

struct Shape {
  const char* name;
  int n, k;
  bool glu;
};
constexpr Shape kLlama8B[] = {{"qkv", 6144, 4096, false},
                              {"o", 4096, 4096, false},
                              {"gate_up", 28672, 4096, true},
                              {"down", 4096, 14336, false}};

inline std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

inline std::vector<int> Numbers(const std::string& text) {
  std::vector<int> values;
  for (const std::string& part : Split(text)) values.push_back(std::stoi(part));
  return values;
}

}  // namespace nibble::cuda::bench
