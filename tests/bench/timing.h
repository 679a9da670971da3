// Timing for kernel benches: a captured graph of many launches over rotated weights, replayed.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <vector>

#include "tests/kernels/cuda/check.h"

namespace nibble::cuda::bench {

using Enqueue = std::function<void(cudaStream_t)>;

// A captured graph of what `enqueue` launches on the stream it is given.
class Replay {
 public:
  Replay(const Enqueue& enqueue, cudaStream_t stream) : stream_(stream) {
    cudaGraph_t graph;
    NIBBLE_CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    enqueue(stream);
    NIBBLE_CUDA_OK(cudaStreamEndCapture(stream, &graph));
    NIBBLE_CUDA_OK(cudaGraphInstantiate(&exec_, graph, 0));
    cudaGraphDestroy(graph);
    NIBBLE_CUDA_OK(cudaEventCreate(&begin_));
    NIBBLE_CUDA_OK(cudaEventCreate(&end_));
  }
  ~Replay() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaGraphExecDestroy(exec_);
  }
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  double Microseconds() {
    float ms = 0.0f;
    NIBBLE_CUDA_OK(cudaEventRecord(begin_, stream_));
    NIBBLE_CUDA_OK(cudaGraphLaunch(exec_, stream_));
    NIBBLE_CUDA_OK(cudaEventRecord(end_, stream_));
    NIBBLE_CUDA_OK(cudaEventSynchronize(end_));
    NIBBLE_CUDA_OK(cudaEventElapsedTime(&ms, begin_, end_));
    return ms * 1e3;
  }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t exec_;
  cudaEvent_t begin_, end_;
};

// Median microseconds of one replay of each, taken by turns, so that what slows the card down (its
// power cap, heat) falls on all alike. The first three rounds warm up.
inline std::vector<double> MedianReplays(const std::vector<Enqueue>& enqueues, int replays = 15) {
  constexpr int kWarm = 3;
  cudaStream_t stream;
  NIBBLE_CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  std::vector<double> medians;
  {
    std::deque<Replay> graphs;
    for (const Enqueue& enqueue : enqueues) graphs.emplace_back(enqueue, stream);
    std::vector<std::vector<double>> times(enqueues.size());
    for (int round = 0; round < replays + kWarm; ++round) {
      for (std::size_t i = 0; i < times.size(); ++i) {
        const double us = graphs[i].Microseconds();
        if (round >= kWarm) times[i].push_back(us);
      }
    }
    for (auto& each : times) {
      std::sort(each.begin(), each.end());
      medians.push_back(each[each.size() / 2]);
    }
  }
  cudaStreamDestroy(stream);
  return medians;
}
inline double MedianReplay(const Enqueue& enqueue, int replays = 15) {
  return MedianReplays({enqueue}, replays)[0];
}

}  // namespace nibble::cuda::bench
