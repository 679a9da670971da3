// Whether a program, its weights and its KV pool fit together; every backend asks before it
// compiles.
#pragma once

#include "absl/status/status.h"
#include "kernels/kv_layout.h"
#include "runtime/device/backend.h"
#include "runtime/device/program.h"

namespace nibble {

// Internal names the op and the two numbers that disagree: such a program is our own mistake, never
// a file's.
absl::Status CheckProgram(const Program& program, const ModelWeights& weights, const KvLayout& kv);

}  // namespace nibble
