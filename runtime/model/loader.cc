#include "runtime/model/loader.h"

#include <malloc.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/model/program_builder.h"

namespace nibble {
namespace {

constexpr int kMaxThreads = 8;
constexpr std::int64_t kMaxBytesInFlight = std::int64_t{512} << 20;  // read but not yet packed

// Packs every linear of a plan into its place. Run() is the whole life; its threads share what
// `mutex_` guards and the claim counter below it.
class WeightLoader {
 public:
  WeightLoader(const WeightPlan& plan, const Checkpoint& checkpoint, const WeightFormat& format,
               Backend& backend, const LoadProgress& progress)
      : plan_(plan),
        checkpoint_(checkpoint),
        format_(format),
        backend_(backend),
        progress_(progress) {}

  absl::StatusOr<ModelWeights> Run() {
    RETURN_IF_ERROR(Measure());
    weights_.linears.resize(plan_.linears.size());
    for (const VectorPlan& vector : plan_.vectors) {
      ASSIGN_OR_RETURN(std::vector<float> values, LoadVector(checkpoint_, vector));
      weights_.vectors.push_back(std::move(values));
    }
    std::vector<std::thread> threads = StartThreads();
    if (threads.empty()) Work();
    for (std::thread& thread : threads) thread.join();
    RETURN_IF_ERROR(failure_);
    return std::move(weights_);
  }

  std::int64_t total_bytes() const { return total_bytes_; }

 private:
  // As many as there are; the caller does the work alone where the system refuses even one.
  std::vector<std::thread> StartThreads() {
    std::vector<std::thread> threads;
    const int wanted =
        std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
    const std::size_t count = std::min<std::size_t>(wanted, plan_.linears.size());
    try {
      while (threads.size() < count) threads.emplace_back([this]() noexcept { Work(); });
    } catch (const std::system_error& error) {
      LogWarning("loading with fewer threads", {{"reason", error.what()}});
    }
    return threads;
  }

  // Host bytes of each linear: what progress counts and what bounds the memory in flight.
  absl::Status Measure() {
    for (const LinearPlan& linear : plan_.linears) {
      ASSIGN_OR_RETURN(std::vector<LinearSpec> specs, DescribeLinear(format_, linear));
      std::int64_t bytes = 0;
      for (const LinearSpec& spec : specs) bytes += HostBytes(spec);
      bytes_.push_back(bytes);
      total_bytes_ += bytes;
    }
    return absl::OkStatus();
  }

  void Work() {
    while (const std::optional<std::size_t> index = Claim()) {
      absl::StatusOr<std::unique_ptr<PackedLinear>> packed = LoadAndPack(*index);
      Finish(*index, std::move(packed));
    }
  }

  // The next linear, once its bytes fit beside those in flight; nothing when all are claimed or one
  // failed.
  std::optional<std::size_t> Claim() {
    std::unique_lock lock(mutex_);
    room_.wait(lock, [this] {
      return !failure_.ok() || next_ == plan_.linears.size() || in_flight_bytes_ == 0 ||
             in_flight_bytes_ + bytes_[next_] <= kMaxBytesInFlight;
    });
    if (!failure_.ok() || next_ == plan_.linears.size()) return std::nullopt;
    in_flight_bytes_ += bytes_[next_];
    return next_++;
  }

  absl::StatusOr<std::unique_ptr<PackedLinear>> LoadAndPack(std::size_t index) {
    const LinearPlan& linear = plan_.linears[index];
    try {
      ASSIGN_OR_RETURN(std::vector<LinearWeight> weights, LoadLinear(format_, linear));
      absl::StatusOr<std::unique_ptr<PackedLinear>> packed = backend_.Pack(weights, linear.axis);
      if (packed.ok()) return packed;
      return absl::Status(packed.status().code(), absl::StrCat(linear.sources.front().layer, ": ",
                                                               packed.status().message()));
    } catch (const std::bad_alloc&) {
      return absl::ResourceExhaustedError(absl::StrCat(
          linear.sources.front().layer, ": out of memory while loading ", bytes_[index], " bytes"));
    }
  }

  void Finish(std::size_t index, absl::StatusOr<std::unique_ptr<PackedLinear>> packed) {
    const std::lock_guard lock(mutex_);
    in_flight_bytes_ -= bytes_[index];
    if (!packed.ok()) {
      if (failure_.ok()) failure_ = packed.status();
    } else {
      weights_.linears[index] = *std::move(packed);
      done_bytes_ += bytes_[index];
      if (failure_.ok() && progress_ && !progress_("weights", done_bytes_, total_bytes_)) {
        failure_ = absl::CancelledError("the load was cancelled");
      }
    }
    room_.notify_all();
  }

  const WeightPlan& plan_;
  const Checkpoint& checkpoint_;
  const WeightFormat& format_;
  Backend& backend_;
  const LoadProgress& progress_;
  std::vector<std::int64_t> bytes_;
  std::int64_t total_bytes_ = 0;

  std::mutex mutex_;  // guards all below while threads run
  std::condition_variable room_;
  std::size_t next_ = 0;
  std::int64_t in_flight_bytes_ = 0;
  std::int64_t done_bytes_ = 0;
  absl::Status failure_;
  ModelWeights weights_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Runner>> LoadRunner(const ModelConfig& config,
                                                   const Checkpoint& checkpoint,
                                                   const WeightFormat& format,
                                                   const MemoryPlan& plan, Backend& backend,
                                                   const LoadProgress& progress) {
  ASSIGN_OR_RETURN(BuiltProgram built,
                   BuildProgram(config, checkpoint, format, plan.limits.max_context));
  WeightLoader loader(built.weights, checkpoint, format, backend, progress);
  ASSIGN_OR_RETURN(ModelWeights weights, loader.Run());
  checkpoint.DropCachedPages();
#ifdef __GLIBC__
  malloc_trim(0);  // what the loading threads freed goes back, as the plan says
#endif
  if (progress && !progress("compile", loader.total_bytes(), loader.total_bytes())) {
    return absl::CancelledError("the load was cancelled");
  }
  return backend.Compile(
      built.program, std::move(weights), plan.kv, plan.limits,
      {.expanded = plan.expanded_bytes > 0, .deterministic = plan.deterministic});
}

}  // namespace nibble
