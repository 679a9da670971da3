// The prefill kernel for one generation of devices, which PrefillAttention prefers where it runs.
#pragma once

#include "kernels/cuda/ops.h"

namespace nibble::cuda {

bool SupportsWgmmaPrefill(const AttentionArgs& args);
std::int64_t WgmmaWorkspaceBytes(const AttentionArgs& args);
cudaError_t WgmmaPrefill(const AttentionArgs& args, LaunchOptions options);

}  // namespace nibble::cuda
