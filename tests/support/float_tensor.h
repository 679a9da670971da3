// A tensor as tests make them up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

struct FloatTensor {
  std::string name;
  std::vector<std::int64_t> shape;  // row-major
  std::vector<float> values;
};

}  // namespace nibble
