// Times the CPU's products over every encoding with SmolLM2-135M's shapes, the layers one after the
// other as a step runs them.
//
//   cpu_products [--threads 2] [--rows 1,16,512] [--only SUBSTRING]
//       [--inputs f32|auto|int8] [--isa 0..3] [--repeats 7]
//
// One line an encoding and rounding of the inputs: of the fastest repeat, multiply-adds a second
// and the tokens a second that they make of a model with those 30 layers (its head left out).
#include "runtime/device/cpu_products.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include "tests/device/random_weight.h"

namespace nibble {
namespace {

struct Shape {
  std::int64_t n, k;
};
constexpr Shape kShapes[] = {{960, 576}, {576, 576}, {3072, 576}, {576, 1536}};
constexpr int kLayers = 30;
constexpr double kMultiplies = kLayers * (960 * 576 + 576 * 576 + 3072 * 576 + 576 * 1536);

std::vector<NamedWeight> Encodings(const Shape& shape) {
  WeightMaker make(1);
  const auto [n, k] = shape;
  std::vector<NamedWeight> all;
  const auto add = [&](const char* name, LinearWeight weight) {
    all.push_back({name, std::move(weight)});
  };
  add("f16", make.DenseWeight(n, k, DType::kF16));
  add("bf16", make.DenseWeight(n, k, DType::kBF16));
  add("f32", make.DenseWeight(n, k, DType::kF32));
  add("Q4_1", make.AffineWeight(n, k, 4, 32, ScaleKind::kF16, OffsetKind::kBias));
  add("Q4_0", make.AffineWeight(n, k, 4, 32, ScaleKind::kF16, OffsetKind::kConstant));
  add("Q8_0", make.AffineWeight(n, k, 8, 32, ScaleKind::kF16, OffsetKind::kConstant));
  add("Q5_0", make.AffineWeight(n, k, 5, 32, ScaleKind::kF16, OffsetKind::kConstant));
  add("Q4_K", make.AffineWeight(n, k, 4, 32, ScaleKind::kTwoLevel, OffsetKind::kTwoLevel));
  add("Q6_K", make.AffineWeight(n, k, 6, 16, ScaleKind::kTwoLevel, OffsetKind::kConstant));
  add("gptq4-g128", make.AffineWeight(n, k, 4, 128, ScaleKind::kF16, OffsetKind::kZeroCodes));
  add("gptq3-g128", make.AffineWeight(n, k, 3, 128, ScaleKind::kF16, OffsetKind::kZeroCodes));
  add("act-order4", make.AffineWeight(n, k, 4, 128, ScaleKind::kF16, OffsetKind::kZeroCodes, true));
  add("nf4", make.CodebookWeight(n, k, 64, ScaleKind::kF32));
  add("mxfp4", make.CodebookWeight(n, k, 32, ScaleKind::kE8M0));
  add("iq4", make.CodebookWeight(n, k, 32, ScaleKind::kF16, true));
  add("int8", make.Row8Weight(n, k, DType::kI8, ActivationQuant::kNone));
  add("w8a8", make.Row8Weight(n, k, DType::kI8, ActivationQuant::kDynamic));
  add("llm.int8", make.Row8Weight(n, k, DType::kI8, ActivationQuant::kOutlierSplit));
  add("fp8", make.Row8Weight(n, k, DType::kF8E4M3, ActivationQuant::kDynamic));
  return all;
}

struct Options {
  int threads = 2, repeats = 7;
  std::vector<std::int64_t> rows = {1, 16, 512};
  std::string only, inputs;
  cpu::Isa isa = cpu::BestIsa();
};

std::vector<std::unique_ptr<CpuLinear>> PackLayers(const std::string& name, DenseForm form) {
  std::vector<std::unique_ptr<CpuLinear>> layers(std::size(kShapes) * kLayers);
  for (std::size_t s = 0; s < std::size(kShapes); ++s) {
    for (const NamedWeight& weight : Encodings(kShapes[s])) {
      if (weight.name != name) continue;
      for (std::size_t l = 0; l < kLayers; ++l) {
        layers[l * std::size(kShapes) + s] =
            CpuLinear::Pack({&weight.weight, 1}, PackAxis::kN, form).value();
      }
    }
  }
  return layers;
}

// Of this thread where it works alone, so that what else runs on the machine is left out.
double Now(const Options& options) {
  timespec now{};
  clock_gettime(options.threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Seconds of the fastest of some passes over all layers.
double Time(const Options& options, InputRounding rounding, std::int64_t rows,
            const std::vector<std::unique_ptr<CpuLinear>>& layers) {
  cpu::ThreadPool pool(options.threads);
  const CpuContext context{&pool, &cpu::KernelsOf(options.isa), rounding};
  MemoryLayout layout;
  CpuProducts products(context, {rows * 1536, 1536}, layout);
  const std::int64_t x_at = layout.Take(rows * 1536 * 4), y_at = layout.Take(rows * 3072 * 4);
  const HostMemory memory = HostMemory::Allocate(layout.total()).value();
  products.Bind(memory);
  auto* x = memory.At<float>(x_at);
  WeightMaker random(2);
  for (std::int64_t i = 0; i < rows * 1536; ++i) x[i] = random.Normal(1.0f);
  double best = 1e9;
  for (int repeat = 0; repeat <= options.repeats; ++repeat) {
    const double start = Now(options);
    for (const auto& linear : layers) {
      const ProductJob job{&linear->segments()[0], x,        linear->k, rows,
                           memory.At<float>(y_at), linear->n};
      products.Run({&job, 1});
    }
    const double seconds = Now(options) - start;
    if (repeat > 0) best = std::min(best, seconds);
  }
  return best;
}

void Run(const Options& options) {
  std::printf("%s, %d threads\n%-12s %-6s", cpu::KernelsOf(options.isa).name, options.threads,
              "encoding", "inputs");
  for (const std::int64_t rows : options.rows)
    std::printf("  GMAC/s@%-4d   tok/s", static_cast<int>(rows));
  std::printf("\n");
  std::vector<std::string> order;
  for (const NamedWeight& weight : Encodings({16, 64})) order.push_back(weight.name);
  for (const std::string& name : order) {
    if (name.find(options.only) == std::string::npos) continue;
    for (const auto& [rounding, label] : {std::pair{InputRounding::kNone, "f32"},
                                          {InputRounding::kInt16, "auto"},
                                          {InputRounding::kInt8, "int8"}}) {
      if (label != options.inputs && !options.inputs.empty()) continue;
      const auto layers = PackLayers(
          name, rounding == InputRounding::kNone ? DenseForm::kExact : DenseForm::kRounded);
      std::printf("%-12s %-6s", name.c_str(), label);
      for (const std::int64_t rows : options.rows) {
        const double seconds = Time(options, rounding, rows, layers);
        const auto tokens = static_cast<double>(rows);
        std::printf("  %11.0f %7.0f", kMultiplies * tokens / seconds * 1e-9, tokens / seconds);
        std::fflush(stdout);
      }
      std::printf("\n");
    }
  }
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    char* value = argv[i + 1];
    if (flag == "--threads") {
      options.threads = std::atoi(value);
    } else if (flag == "--repeats") {
      options.repeats = std::atoi(value);
    } else if (flag == "--only") {
      options.only = value;
    } else if (flag == "--inputs") {
      options.inputs = value;
    } else if (flag == "--isa") {
      options.isa = cpu::kAllIsas[std::atoi(value)];
    } else if (flag == "--rows") {
      options.rows.clear();
      for (char* at = value; *at != '\0'; at += *at == ',') {
        options.rows.push_back(std::strtol(at, &at, 10));
      }
    } else {
      std::fprintf(stderr, "unknown flag %s\n", flag.c_str());
      return 2;
    }
  }
  Run(options);
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
