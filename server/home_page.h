// The page that people see when they open the HTTP port in a browser.
#pragma once

#include <string>

#include "server/serving_state.h"

namespace nibble {

std::string HomePage(const ServingState& state, const std::string& grpc_address);

}  // namespace nibble
