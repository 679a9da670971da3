// nibble.v1.AdminService: plans, loads and unloads models below one directory.
#pragma once

#include <string>

#include "runtime/engine/model_hub.h"
#include "server/prepare_pool.h"
#include "server/rpc.h"
#include "server/serving_state.h"

namespace nibble {

struct AdminOptions {
  std::string model_root;  // empty: no path is allowed
  LoadSpec defaults;       // the daemon's own settings; name and path are the request's
  absl::Duration drain_timeout = absl::Seconds(30);
};

// `state` and `pool` outlive the server. Loads and unloads keep a thread of the pool for as long as
// they take.
RpcService MakeAdminService(ServingState* state, PreparePool* pool, AdminOptions options);

}  // namespace nibble
