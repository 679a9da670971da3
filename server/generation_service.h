// nibble.v1.GenerationService over the models of the hub.
#pragma once

#include "server/prepare_pool.h"
#include "server/rpc.h"
#include "server/serving_state.h"

namespace nibble {

// `state` and `pool` outlive the server.
RpcService MakeGenerationService(const ServingState* state, PreparePool* pool);

}  // namespace nibble
