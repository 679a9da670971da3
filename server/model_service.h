// nibble.v1.ModelService: what is loaded.
#pragma once

#include "server/rpc.h"
#include "server/serving_state.h"

namespace nibble {

RpcService MakeModelService(const ServingState* state);  // `state` outlives the server

}  // namespace nibble
