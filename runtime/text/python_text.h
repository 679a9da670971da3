// What Python's str does, on UTF-8: indices count code points, and space and case are Unicode's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace nibble::python {

// The code point at text[*position], which moves past it. A byte that is not UTF-8 counts as one
// code point.
char32_t Decode(absl::string_view text, std::size_t* position);
void Encode(char32_t code_point, std::string* out);
bool IsValidUtf8(absl::string_view text);
bool IsAscii(absl::string_view text);

std::int64_t Length(absl::string_view text);  // in code points
std::size_t ByteOffset(absl::string_view text,
                       std::int64_t code_points);  // of that code point, at most the end
std::vector<absl::string_view> Characters(absl::string_view text);

bool IsSpace(char32_t c);
bool IsAlpha(char32_t c);
bool IsDecimal(char32_t c);
bool IsPrintable(char32_t c);
bool IsUpper(char32_t c);
bool IsLower(char32_t c);

enum class Side { kLeft, kRight, kBoth };
absl::string_view Strip(absl::string_view text, Side side);
absl::string_view Strip(absl::string_view text, absl::string_view characters, Side side);

std::string Upper(absl::string_view text);
std::string Lower(absl::string_view text);
std::string Capitalize(absl::string_view text);
std::string SwapCase(absl::string_view text);
std::string Title(absl::string_view text);  // of str: a letter after a non-letter is upper

// Linear in text, whatever the pattern. npos when absent.
std::size_t Find(absl::string_view text, absl::string_view pattern, std::size_t from = 0);
std::size_t FindLast(absl::string_view text, absl::string_view pattern);
std::int64_t Count(absl::string_view text, absl::string_view pattern);  // not overlapping

std::vector<absl::string_view> SplitSpace(absl::string_view text, std::int64_t most,
                                          bool from_right);
std::vector<absl::string_view> Split(absl::string_view text, absl::string_view separator,
                                     std::int64_t most, bool from_right);
std::vector<absl::string_view> SplitLines(absl::string_view text, bool keep_ends);

std::string FloatRepr(double value);  // the shortest digits that read back; "inf", "nan"
std::string StringRepr(absl::string_view text);

}  // namespace nibble::python
