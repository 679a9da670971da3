#include "kernels/cpu/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "kernels/dtype.h"
#include "tests/kernels/isa_test.h"
#include "tests/kernels/reference.h"

namespace nibble {
namespace {

using cpu::kAttentionChunk;

struct Case {
  int head_dim = 64;
  int keys = 300;
  int page_tokens = 64;
  int window = 0;
  float softcap = 0.0f;
  DType dtype = DType::kF32;
};

// Keys and values of one kv head in scattered pages; what no query may read is NaN.
struct PagedKv {
  explicit PagedKv(const Case& c)
      : keys(reference::Random(c.keys * c.head_dim, 1)),
        values(reference::Random(c.keys * c.head_dim, 2)) {
    const int pages_needed = (c.keys + c.page_tokens - 1) / c.page_tokens;
    for (int i = 0; i < pages_needed; ++i) pages.push_back((i * 7 + 3) % 64);
    const std::int64_t stride = 2LL * c.page_tokens * c.head_dim;
    pool.resize(64 * stride * 4, 0xff);
    for (int p = 0; p < c.keys; ++p) {
      for (int d = 0; d < c.head_dim; ++d) {
        const std::int64_t at =
            pages[p / c.page_tokens] * stride + (p % c.page_tokens) * c.head_dim + d;
        Put(c, at, keys[p * c.head_dim + d]);
        Put(c, at + c.page_tokens * c.head_dim, values[p * c.head_dim + d]);
      }
    }
    kv = {c.dtype,       pool.data(), pages.data(),
          stride,        0,           std::int64_t{c.page_tokens} * c.head_dim,
          c.page_tokens, c.head_dim};
  }

  void Put(const Case& c, std::int64_t at, float& value) {
    if (c.dtype == DType::kF32) {
      std::memcpy(pool.data() + at * 4, &value, 4);
      return;
    }
    const std::uint16_t half = c.dtype == DType::kF16 ? F32ToF16(value) : F32ToBf16(value);
    std::memcpy(pool.data() + at * 2, &half, 2);
    value = c.dtype == DType::kF16 ? F16ToF32(half) : Bf16ToF32(half);
  }

  std::vector<float> keys, values;
  std::vector<std::int32_t> pages;
  std::vector<std::uint8_t> pool;
  cpu::KvPages kv;
};

struct State {
  State(int rows, int head_dim)
      : max(rows, -std::numeric_limits<float>::infinity()),
        sum(rows),
        out(rows * cpu::PaddedHead(head_dim)) {}
  cpu::AttentionState view() { return {max.data(), sum.data(), out.data()}; }
  std::vector<float> max, sum, out;
};

// The outputs of queries at `positions`, all in one task.
std::vector<std::vector<float>> Attend(const cpu::KernelTable& kernels, const Case& c,
                                       const PagedKv& paged,
                                       const std::vector<std::vector<float>>& queries,
                                       const std::vector<std::int32_t>& positions,
                                       bool apart = false) {
  const int rows = static_cast<int>(queries.size());
  std::vector<const float*> pointers;
  for (const auto& q : queries) pointers.push_back(q.data());
  std::vector<float> scratch(cpu::AttentionScratchFloats(c.head_dim));
  State all(rows, c.head_dim);
  const int keys = *std::max_element(positions.begin(), positions.end()) + 1;
  for (int begin = 0; begin < keys; begin += kAttentionChunk) {
    const cpu::AttentionArgs args{
        paged.kv,      pointers.data(), positions.data(),
        rows,          0.125f,          c.softcap,
        c.window,      begin,           std::min(keys, begin + kAttentionChunk),
        scratch.data()};
    if (apart) {
      State one(rows, c.head_dim);
      kernels.attend_chunk(args, one.view());
      kernels.attend_merge(all.view(), one.view(), rows, c.head_dim);
    } else {
      kernels.attend_chunk(args, all.view());
    }
  }
  std::vector<std::vector<float>> out;
  for (int r = 0; r < rows; ++r) {
    out.emplace_back(c.head_dim);
    kernels.attend_finish(all.view(), r, c.head_dim, nullptr, out.back().data());
  }
  return out;
}

class AttentionTest : public IsaTest {};

TEST_P(AttentionTest, MatchesReferenceAtOddShapes) {
  const Case cases[] = {
      {64, 300, 64},
      {8, 17, 16},
      {16, 1, 64},
      {48, 129, 64},
      {128, 257, 64},
      {80, 65, 7},
      {256, 140, 64},
      {64, 300, 64, 33},
      {64, 300, 64, 0, 5.0f},
      {20, 128, 64, 1},
      {72, 200, 64, 150, 30.0f},
      {64, 300, 64, 0, 0, DType::kF16},
      {40, 150, 32, 0, 0, DType::kBF16},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message()
                 << "head_dim " << c.head_dim << " keys " << c.keys << " page " << c.page_tokens
                 << " window " << c.window << " softcap " << c.softcap);
    const PagedKv paged(c);
    std::vector<std::vector<float>> queries;
    std::vector<std::int32_t> positions;
    for (int r = 0; r < 23; ++r) {
      queries.push_back(reference::Random(c.head_dim, 100 + r, 2.0f));
      positions.push_back(std::max(0, c.keys - 8 + r / 3));
      if (positions.back() >= c.keys) positions.back() = c.keys - 1;
    }
    const auto out = Attend(kernels(), c, paged, queries, positions);
    for (std::size_t r = 0; r < queries.size(); ++r) {
      const auto expected =
          reference::Attend({c.head_dim, 0.125, c.window, c.softcap, nullptr}, queries[r].data(),
                            positions[r], paged.keys, paged.values);
      EXPECT_THAT(out[r], testing::Pointwise(testing::FloatNear(1e-5f), expected));
    }
  }
}

TEST_P(AttentionTest, RowIsTheSameBitsAloneAndAmongOthersAndWithChunksApart) {
  const Case c{64, 500, 64};
  const PagedKv paged(c);
  std::vector<std::vector<float>> queries;
  std::vector<std::int32_t> positions;
  for (int r = 0; r < 64; ++r) {
    queries.push_back(reference::Random(c.head_dim, r));
    positions.push_back(c.keys - 22 + r / 3);
  }
  const auto together = Attend(kernels(), c, paged, queries, positions);
  EXPECT_EQ(together, Attend(kernels(), c, paged, queries, positions, /*apart=*/true));
  for (int r = 0; r < 64; ++r) {
    EXPECT_EQ(Attend(kernels(), c, paged, {queries[r]}, {positions[r]})[0], together[r])
        << "row " << r;
  }
}

TEST_P(AttentionTest, SinkTakesItsShare) {
  const Case c{16, 5, 16};
  const PagedKv paged(c);
  const auto q = reference::Random(16, 9);
  const float* pointer = q.data();
  const std::int32_t position = 4;
  std::vector<float> scratch(cpu::AttentionScratchFloats(16)), out(16);
  for (const float sink : {-2.0f, 0.5f, 40.0f}) {
    State state(1, 16);
    kernels().attend_chunk({paged.kv, &pointer, &position, 1, 0.25f, 0, 0, 0, 5, scratch.data()},
                           state.view());
    kernels().attend_finish(state.view(), 0, 16, &sink, out.data());
    EXPECT_THAT(out, testing::Pointwise(testing::FloatNear(1e-6f),
                                        reference::Attend({16, 0.25, 0, 0, &sink}, q.data(), 4,
                                                          paged.keys, paged.values)));
  }
}

TEST_P(AttentionTest, NanQueryLeavesOtherRowsAlone) {
  const Case c{64, 100, 64};
  const PagedKv paged(c);
  std::vector<std::vector<float>> queries;
  for (int r = 0; r < 6; ++r) queries.push_back(reference::Random(64, r));
  const std::vector<std::int32_t> positions(6, 99);
  const auto clean = Attend(kernels(), c, paged, queries, positions);
  queries[2][5] = std::nanf("");
  const auto out = Attend(kernels(), c, paged, queries, positions);
  for (int r = 0; r < 6; ++r) {
    if (r == 2) {
      EXPECT_TRUE(std::isnan(out[r][0]));
    } else {
      EXPECT_EQ(out[r], clean[r]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionTest, testing::ValuesIn(cpu::kAllIsas), IsaName);

}  // namespace
}  // namespace nibble
