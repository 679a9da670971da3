// The tokenizers that the machine has: public vocabularies and the checkpoints' own.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/engine/vocabulary.h"
#include "runtime/weights/checkpoint.h"
#include "tests/support/conformance.h"

namespace nibble {

inline std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// Fails the test and returns null when it does not load.
inline std::shared_ptr<const Tokenizer> TokenizerOf(const std::filesystem::path& path) {
  auto checkpoint = Checkpoint::Open(path.string());
  if (!checkpoint.ok()) {
    ADD_FAILURE() << path << ": " << checkpoint.status().ToString();
    return nullptr;
  }
  auto tokenizer = LoadTokenizer(**checkpoint);
  if (!tokenizer.ok()) {
    ADD_FAILURE() << path << ": " << tokenizer.status().ToString();
    return nullptr;
  }
  return *std::move(tokenizer);
}

inline std::shared_ptr<const Tokenizer> Qwen2Tokenizer(const std::filesystem::path& conformance) {
  const std::filesystem::path dir = conformance / "tokenizer" / "qwen2";
  auto tokenizer =
      Tokenizer::FromVocabAndMerges(ReadFile(dir / "vocab.json"), ReadFile(dir / "merges.txt"),
                                    ReadFile(dir / "tokenizer_config.json"));
  if (!tokenizer.ok()) {
    ADD_FAILURE() << tokenizer.status().ToString();
    return nullptr;
  }
  return *std::move(tokenizer);
}

// SmolLM2-135M-Instruct.Q4_1.gguf: NIBBLE_SMOLLM2, else build/models beside the sources; nothing
// when absent.
inline std::optional<std::filesystem::path> SmolLm2Path() {
  std::filesystem::path path = std::filesystem::path(NIBBLE_SOURCE_DIR) / "build" / "models" /
                               "SmolLM2-135M-Instruct.Q4_1.gguf";
  if (const char* named = std::getenv("NIBBLE_SMOLLM2")) path = named;
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return std::nullopt;
  return path;
}

// (name, tokenizer) for every vocabulary of the conformance data; equal checkpoints once.
inline std::vector<std::pair<std::string, std::shared_ptr<const Tokenizer>>> AllTokenizers(
    const std::filesystem::path& conformance) {
  std::vector<std::pair<std::string, std::shared_ptr<const Tokenizer>>> all;
  for (const auto& entry : std::filesystem::directory_iterator(conformance / "tokenizer")) {
    if (entry.path().extension() == ".gguf") {
      all.emplace_back(entry.path().filename().string(), TokenizerOf(entry.path()));
    }
  }
  for (const char* name : {"babyllama-hf", "stories260k-hf"}) {
    const std::filesystem::path dir = conformance / "checkpoints" / name;
    if (std::filesystem::is_directory(dir)) all.emplace_back(name, TokenizerOf(dir));
  }
  for (const char* name : {"babyllama-gguf-q4_0", "stories260k-gguf-f16"}) {
    const std::filesystem::path file =
        conformance / "checkpoints" / name / (std::string(name) + ".gguf");
    if (std::filesystem::is_regular_file(file)) all.emplace_back(name, TokenizerOf(file));
  }
  all.emplace_back("qwen2", Qwen2Tokenizer(conformance));
  return all;
}

}  // namespace nibble
