// A visitor of std::variant made of lambdas, one arm an alternative.
#pragma once

namespace nibble {

template <typename... Arms>
struct Overloaded : Arms... {
  using Arms::operator()...;
};
template <typename... Arms>
Overloaded(Arms...) -> Overloaded<Arms...>;

}  // namespace nibble
