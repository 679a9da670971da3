// One Generate on its way into an engine, whichever door it came through.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "nibble/v1/generation.pb.h"
#include "runtime/engine/served_model.h"
#include "runtime/engine/token_stream.h"
#include "server/prepare_pool.h"
#include "server/serving_state.h"

namespace nibble {

// Shared by the door and the job on the pool; the door reads `stream` and leaves the rest alone
// once it was submitted.
struct GenerationJob {
  v1::GenerateRequest proto;
  absl::Time deadline = absl::InfiniteFuture();

  // Set by SubmitGeneration.
  std::shared_ptr<const ServedModel> model;
  std::shared_ptr<TokenStream> stream;
};

// Finds the model, names a request that has no id, and has the pool prepare and submit it. On OK
// the stream will be closed exactly once, whatever happens, and how it ended is counted; `waker` is
// told of what comes. Otherwise the caller counts the refusal (ServingState::CountRefused). Quick;
// any thread.
absl::Status SubmitGeneration(const ServingState* state, PreparePool* pool,
                              std::shared_ptr<GenerationJob> job, std::weak_ptr<StreamWaker> waker);

}  // namespace nibble
