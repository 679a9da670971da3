// What nibble bench prints: tables as the numbers come, or one JSON object at the end.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/device/backend.h"
#include "runtime/engine/served_model.h"
#include "server/cli/footprint.h"
#include "server/cli/measure.h"

namespace nibble {

// What the measured model is and what it could do at best.
struct BenchSubject {
  ModelInfo info;
  RunnerMemory memory;
  DeviceInfo device;
  Footprint footprint;
  absl::Duration ready;  // from the start of this process
};

struct BenchSettings {
  std::int32_t output_tokens = 0;
  int repeats = 0;
};

// One thread.
class BenchReport {
 public:
  BenchReport(const BenchSubject* subject, const BenchSettings& settings, bool json);

  void Add(const PrefillResult& result);
  void Add(const DecodeResult& result);
  void Add(const ThroughputResult& result);
  void Add(const ArrivalsResult& result);
  void End();

 private:
  double BandwidthShare(const DecodeResult& result) const;  // 0: the device's is unknown
  double FlopsShare(const PrefillResult& result) const;
  void PrintHead() const;

  const BenchSubject& subject_;
  const BenchSettings settings_;
  const bool json_;
  Json::Array prefill_, decode_, throughput_, arrivals_;
};

}  // namespace nibble
