#include "runtime/device/program_check.h"

#include <cstddef>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace nibble {
namespace {

class Checker {
 public:
  Checker(const Program& program, const ModelWeights& weights, const KvLayout& kv)
      : program_(program), weights_(weights), kv_(kv) {}

  absl::Status Check() {
    RETURN_IF_ERROR(CheckShape());
    for (index_ = 0; index_ < program_.ops.size(); ++index_) {
      RETURN_IF_ERROR(
          std::visit([this](const auto& op) { return CheckOp(op); }, program_.ops[index_]));
    }
    return Buffer(program_.logits, program_.vocab);
  }

 private:
  template <typename... Parts>
  absl::Status Bad(const Parts&... parts) const {
    return absl::InternalError(absl::StrCat("program op ", index_, ": ", parts...));
  }

  absl::Status CheckShape() const {
    if (program_.num_heads < 1 || program_.num_kv_heads < 1 ||
        program_.num_heads % program_.num_kv_heads != 0) {
      return absl::InternalError(absl::StrCat("program of ", program_.num_heads, " heads over ",
                                              program_.num_kv_heads, " kv heads"));
    }
    if (kv_.num_layers < program_.num_layers || kv_.num_kv_heads != program_.num_kv_heads ||
        kv_.head_dim != program_.head_dim || kv_.page_tokens < 1 || kv_.num_pages < 1) {
      return absl::InternalError(
          absl::StrCat("KV pool of ", kv_.num_layers, " layers, ", kv_.num_kv_heads, " heads of ",
                       kv_.head_dim, ", ", kv_.num_pages, " pages of ", kv_.page_tokens,
                       " tokens for a program of ", program_.num_layers, " layers, ",
                       program_.num_kv_heads, " heads of ", program_.head_dim));
    }
    for (const BufferSpec& buffer : program_.buffers) {
      if (buffer.dim < 1)
        return absl::InternalError(absl::StrCat("buffer ", buffer.name, " has dim ", buffer.dim));
    }
    return absl::OkStatus();
  }

  // The buffer exists and has `dim` elements a row (-1: any).
  absl::Status Buffer(BufferId id, std::int64_t dim) const {
    if (id < 0 || static_cast<std::size_t>(id) >= program_.buffers.size())
      return Bad("buffer ", id);
    const BufferSpec& buffer = program_.buffers[static_cast<std::size_t>(id)];
    if (dim >= 0 && buffer.dim != dim)
      return Bad("buffer ", buffer.name, " has dim ", buffer.dim, ", not ", dim);
    return absl::OkStatus();
  }
  std::int64_t Dim(BufferId id) const { return program_.buffers[static_cast<std::size_t>(id)].dim; }

  absl::Status SameRows(BufferId a, BufferId b) const {
    if (program_.buffers[static_cast<std::size_t>(a)].per_logit_row ==
        program_.buffers[static_cast<std::size_t>(b)].per_logit_row) {
      return absl::OkStatus();
    }
    return Bad("buffers ", a, " and ", b, " have different rows");
  }

  absl::Status Same(BufferId a, BufferId b) const {
    RETURN_IF_ERROR(Buffer(a, -1));
    RETURN_IF_ERROR(Buffer(b, Dim(a)));
    return SameRows(a, b);
  }

  absl::Status Vector(VectorId id, std::int64_t dim) const {
    if (id == kNoVector) return absl::OkStatus();
    if (id < 0 || static_cast<std::size_t>(id) >= weights_.vectors.size())
      return Bad("vector ", id);
    const auto size =
        static_cast<std::int64_t>(weights_.vectors[static_cast<std::size_t>(id)].size());
    return size == dim ? absl::OkStatus()
                       : Bad("vector ", id, " has ", size, " elements, not ", dim);
  }

  absl::Status Linear(LinearId id, std::int64_t n, std::int64_t k) const {
    if (id < 0 || static_cast<std::size_t>(id) >= weights_.linears.size() ||
        weights_.linears[static_cast<std::size_t>(id)] == nullptr) {
      return Bad("linear ", id);
    }
    const PackedLinear& linear = *weights_.linears[static_cast<std::size_t>(id)];
    if (linear.n == n && linear.k == k) return absl::OkStatus();
    return Bad("linear ", id, " is ", linear.n, " by ", linear.k, ", not ", n, " by ", k);
  }

  absl::Status CheckOp(const EmbedOp& op) const {
    RETURN_IF_ERROR(Buffer(op.out, program_.hidden));
    return Linear(op.table, program_.vocab, program_.hidden);
  }
  absl::Status CheckOp(const RmsNormOp& op) const {
    RETURN_IF_ERROR(Same(op.in, op.out));
    return Vector(op.weight, Dim(op.in));
  }
  absl::Status CheckOp(const AddRmsNormOp& op) const {
    RETURN_IF_ERROR(Same(op.residual, op.delta));
    RETURN_IF_ERROR(Same(op.residual, op.out));
    return Vector(op.weight, Dim(op.residual));
  }
  absl::Status CheckOp(const AddOp& op) const { return Same(op.residual, op.delta); }
  absl::Status CheckOp(const LinearOp& op) const {
    RETURN_IF_ERROR(Buffer(op.in, -1));
    RETURN_IF_ERROR(Buffer(op.out, -1));
    RETURN_IF_ERROR(SameRows(op.in, op.out));
    return Linear(op.weight, Dim(op.out), Dim(op.in));
  }

  std::int64_t QkvDim() const {
    return std::int64_t{program_.num_heads + 2 * program_.num_kv_heads} * program_.head_dim;
  }
  absl::Status Layer(std::int32_t layer) const {
    return layer >= 0 && layer < kv_.num_layers ? absl::OkStatus() : Bad("layer ", layer);
  }
  absl::Status CheckOp(const RopeAppendOp& op) const {
    RETURN_IF_ERROR(Buffer(op.qkv, QkvDim()));
    RETURN_IF_ERROR(Layer(op.layer));
    RETURN_IF_ERROR(Vector(op.q_norm, program_.head_dim));
    RETURN_IF_ERROR(Vector(op.k_norm, program_.head_dim));
    if (op.rope >= static_cast<std::int32_t>(program_.ropes.size()))
      return Bad("rope table ", op.rope);
    if (op.rope < 0) return absl::OkStatus();
    const std::size_t half = program_.ropes[static_cast<std::size_t>(op.rope)].inv_freq.size();
    if (2 * half > static_cast<std::size_t>(program_.head_dim)) {
      return Bad("rotates ", 2 * half, " entries of heads of ", program_.head_dim);
    }
    return absl::OkStatus();
  }
  absl::Status CheckOp(const AttentionOp& op) const {
    RETURN_IF_ERROR(Buffer(op.qkv, QkvDim()));
    RETURN_IF_ERROR(Buffer(op.out, std::int64_t{program_.num_heads} * program_.head_dim));
    RETURN_IF_ERROR(Layer(op.layer));
    return Vector(op.sinks, program_.num_heads);
  }
  absl::Status CheckOp(const GluOp& op) const {
    RETURN_IF_ERROR(Buffer(op.out, -1));
    RETURN_IF_ERROR(Buffer(op.in, 2 * Dim(op.out)));
    return SameRows(op.in, op.out);
  }
  absl::Status CheckOp(const MoeOp& op) const {
    RETURN_IF_ERROR(Same(op.in, op.out));
    if (op.experts < 1 || op.top_k < 1 || op.top_k > op.experts || op.intermediate < 1) {
      return Bad("the best ", op.top_k, " of ", op.experts, " experts of ", op.intermediate);
    }
    RETURN_IF_ERROR(Linear(op.router, op.experts, Dim(op.in)));
    RETURN_IF_ERROR(Linear(op.gate_up, 2 * std::int64_t{op.intermediate}, Dim(op.in)));
    return Linear(op.down, Dim(op.in), op.intermediate);
  }
  absl::Status CheckOp(const GatherRowsOp& op) const {
    RETURN_IF_ERROR(Buffer(op.in, -1));
    RETURN_IF_ERROR(Buffer(op.out, Dim(op.in)));
    const bool ok = !program_.buffers[static_cast<std::size_t>(op.in)].per_logit_row &&
                    program_.buffers[static_cast<std::size_t>(op.out)].per_logit_row;
    return ok ? absl::OkStatus() : Bad("gathers from buffer ", op.in, " to ", op.out);
  }
  absl::Status CheckOp(const SoftcapOp& op) const { return Buffer(op.logits, -1); }

  const Program& program_;
  const ModelWeights& weights_;
  const KvLayout& kv_;
  std::size_t index_ = 0;
};

}  // namespace

absl::Status CheckProgram(const Program& program, const ModelWeights& weights, const KvLayout& kv) {
  return Checker(program, weights, kv).Check();
}

}  // namespace nibble
