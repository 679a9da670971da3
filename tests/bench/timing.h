// Timing for kernel benches: a captured graph of many launches over rotated weights, replayed.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "tests/kernels/cuda/check.h"

namespace nibble::cuda::bench {

// Median microseconds of one replay of what `enqueue` launches on the stream it is given.
inline double MedianReplay(const std::function<void(cudaStream_t)>& enqueue, int replays = 15) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  NIBBLE_CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  NIBBLE_CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  enqueue(stream);
  NIBBLE_CUDA_OK(cudaStreamEndCapture(stream, &graph));
  NIBBLE_CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  NIBBLE_CUDA_OK(cudaEventCreate(&begin));
  NIBBLE_CUDA_OK(cudaEventCreate(&end));
  for (int i = 0; i < 3; ++i) NIBBLE_CUDA_OK(cudaGraphLaunch(exec, stream));
  std::vector<float> times(replays);
  for (float& ms : times) {
    NIBBLE_CUDA_OK(cudaEventRecord(begin, stream));
    NIBBLE_CUDA_OK(cudaGraphLaunch(exec, stream));
    NIBBLE_CUDA_OK(cudaEventRecord(end, stream));
    NIBBLE_CUDA_OK(cudaEventSynchronize(end));
    NIBBLE_CUDA_OK(cudaEventElapsedTime(&ms, begin, end));
  }
  std::sort(times.begin(), times.end());
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return times[replays / 2] * 1e3;
}

}  // namespace nibble::cuda::bench
