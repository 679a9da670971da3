// The kernels behind PrefillAttention: for one generation of devices, preferred where it runs, and
// for all.
#pragma once

#include "kernels/cuda/ops.h"

namespace nibble::cuda {

bool SupportsWgmmaPrefill(const AttentionArgs& args);
std::int64_t WgmmaWorkspaceBytes(const AttentionArgs& args);
cudaError_t WgmmaPrefill(const AttentionArgs& args, LaunchOptions options);

// Also one row a sequence, without query_offsets.
cudaError_t PortableAttention(const AttentionArgs& args, LaunchOptions options);

}  // namespace nibble::cuda
