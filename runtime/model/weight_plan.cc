#include "runtime/model/weight_plan.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"
#include "runtime/model/join_rows.h"

namespace nibble {
namespace {

absl::Status CheckSource(const LinearSource& source, const LinearSpec& spec) {
  if (spec.n != source.n || spec.k != source.k) {
    return absl::InvalidArgumentError(absl::StrCat(source.layer, " is [", spec.n, ", ", spec.k,
                                                   "], but the configuration makes it [", source.n,
                                                   ", ", source.k, "] (outputs, inputs)"));
  }
  if (source.needs_bias && !spec.has_bias) {
    return absl::InvalidArgumentError(
        absl::StrCat(source.layer, " has no bias, which its architecture requires"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<LinearSpec>> DescribeLinear(const WeightFormat& format,
                                                       const LinearPlan& plan) {
  std::vector<LinearSpec> specs;
  for (std::size_t i = 0; i < plan.sources.size(); ++i) {
    const LinearSource& source = plan.sources[i];
    ASSIGN_OR_RETURN(LinearSpec spec, format.Describe(source.layer));
    RETURN_IF_ERROR(CheckSource(source, spec));
    if (i % plan.joined == 0) {
      specs.push_back(spec);
    } else {
      ASSIGN_OR_RETURN(specs.back(), JoinedSpec(specs.back(), spec, source.layer));
    }
  }
  return specs;
}

absl::StatusOr<std::vector<LinearWeight>> LoadLinear(const WeightFormat& format,
                                                     const LinearPlan& plan) {
  std::vector<LinearWeight> weights;
  for (std::size_t i = 0; i < plan.sources.size(); ++i) {
    const LinearSource& source = plan.sources[i];
    ASSIGN_OR_RETURN(LinearWeight weight, format.Load(source.layer));
    RETURN_IF_ERROR(CheckSource(source, SpecOf(weight)));
    if (!source.row_order.empty()) weight = PermuteRows(std::move(weight), source.row_order);
    if (i % plan.joined == 0) {
      weights.push_back(std::move(weight));
    } else {
      ASSIGN_OR_RETURN(weights.back(), JoinRows(weights.back(), weight, source.layer));
    }
  }
  return weights;
}

absl::Status CheckVector(const Checkpoint& checkpoint, const VectorPlan& plan) {
  const TensorInfo* tensor = checkpoint.Find(plan.tensor);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(plan.tensor, " is missing from the checkpoint"));
  }
  if (tensor->shape != std::vector<std::int64_t>{plan.size}) {
    return absl::InvalidArgumentError(
        absl::StrCat(plan.tensor, " has shape [", absl::StrJoin(tensor->shape, ", "),
                     "], but the configuration makes it [", plan.size, "]"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> LoadVector(const Checkpoint& checkpoint,
                                              const VectorPlan& plan) {
  RETURN_IF_ERROR(CheckVector(checkpoint, plan));
  ASSIGN_OR_RETURN(std::vector<float> values, ReadVector(checkpoint, plan.tensor));
  for (float& value : values) value += plan.add;
  return values;
}

}  // namespace nibble
