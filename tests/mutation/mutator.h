// Changes to a checkpoint that keep most of it valid: what a broken converter, a bad download or an
// attacker could leave.
#pragma once

#include <cstdint>
#include <random>
#include <string>

#include "tests/mutation/seeds.h"

namespace nibble {

class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}

  // Changes one to three things; what they are, in words.
  std::string Mutate(SeedCheckpoint& checkpoint);

  // Below `count`; 0 when that is 0.
  std::size_t Below(std::size_t count) { return count == 0 ? 0 : random_() % count; }

 private:
  bool Chance(int percent) { return Below(100) < static_cast<std::size_t>(percent); }
  template <typename T>
  auto& Pick(T& from) {
    return from[Below(std::size(from))];
  }

  std::string MutateOnce(SeedCheckpoint& checkpoint);

  std::string MutateJson(std::string& text);
  std::string MutateQuantization(std::string& config);
  std::string AddConfigKey(std::string& config);
  std::string MutateText(SeedCheckpoint& checkpoint);

  std::string MutateSafetensors(std::string& file);
  std::string MutateGguf(std::string& file);
  std::string MutateGgufKey(std::string& file);

  std::string Nonsense(std::string* kind);
  // Changes tensor bytes in place; `what` names the type.
  std::string MutateBytes(std::string& data, std::uint64_t begin, std::uint64_t end,
                          const std::string& type);
  std::string Break(std::string& file);

  std::mt19937_64 random_;
  bool broken_ = false;  // a weight file has no fields any more that could be told apart
};

}  // namespace nibble
