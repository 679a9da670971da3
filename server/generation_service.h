// nibble.v1.GenerationService over the models of the hub.
#pragma once

#include <string>

#include "server/prepare_pool.h"
#include "server/rpc.h"
#include "server/serving_state.h"

namespace nibble {

// `state` and `pool` outlive the server. `tenant_metadata`: the metadata that names the tenant of a
// call; empty: the request does.
RpcService MakeGenerationService(const ServingState* state, PreparePool* pool,
                                 std::string tenant_metadata);

}  // namespace nibble
