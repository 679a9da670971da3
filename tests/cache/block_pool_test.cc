#include "runtime/cache/block_pool.h"

#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace nibble {
namespace {

std::vector<std::int32_t> Tokens(int count, int first = 0) {
  std::vector<std::int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

#define EXPECT_INTACT(pool) EXPECT_EQ((pool).CheckIntegrity(), absl::OkStatus())

TEST(BlockPoolTest, ListsGiveTheirBlocksBack) {
  BlockPool pool(4, 8);
  {
    BlockList list;
    ASSERT_TRUE(pool.Extend(list, 3));
    EXPECT_EQ(pool.used(), 3);
    BlockList moved = std::move(list);
    EXPECT_EQ(moved.size(), 3);
    EXPECT_TRUE(list.empty());
    EXPECT_EQ(pool.used(), 3);
    EXPECT_FALSE(pool.Extend(moved, 2)) << "only one is left";
    EXPECT_EQ(moved.size(), 3);
    EXPECT_INTACT(pool);
  }
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.free(), 4);
  EXPECT_INTACT(pool);
}

TEST(BlockPoolTest, FullCommittedBlocksAreFoundAgain) {
  BlockPool pool(8, 4);
  const std::vector<std::int32_t> tokens = Tokens(10);
  std::vector<std::int32_t> ids;
  {
    BlockList list;
    ASSERT_TRUE(pool.Extend(list, 3));
    pool.Commit(list, "", tokens);
    EXPECT_EQ(list.num_shared(), 2) << "the third holds only two tokens";
    ids = list.ids();
  }
  EXPECT_EQ(pool.cached(), 2);
  EXPECT_EQ(pool.free(), 6);

  BlockList found = pool.Match("", tokens);
  ASSERT_EQ(found.size(), 2);
  EXPECT_EQ(found.ids()[0], ids[0]);
  EXPECT_EQ(found.ids()[1], ids[1]);
  EXPECT_EQ(pool.used(), 2);
  // The same first block, another second.
  std::vector<std::int32_t> other = tokens;
  other[6] = 99;
  EXPECT_EQ(pool.Match("", other).size(), 1);
  // The second block's tokens at the start of a prompt are something else.
  EXPECT_EQ(pool.Match("", Tokens(4, 4)).size(), 0);
  EXPECT_INTACT(pool);
}

TEST(BlockPoolTest, SaltsNeverShare) {
  BlockPool pool(8, 4);
  BlockList list;
  ASSERT_TRUE(pool.Extend(list, 2));
  pool.Commit(list, "alice", Tokens(8));
  EXPECT_EQ(pool.Match("", Tokens(8)).size(), 0);
  EXPECT_EQ(pool.Match("bob", Tokens(8)).size(), 0);
  EXPECT_EQ(pool.Match("alice", Tokens(8)).size(), 2);
}

TEST(BlockPoolTest, UncommittedTokensAreNotFound) {
  BlockPool pool(8, 4);
  BlockList list;
  ASSERT_TRUE(pool.Extend(list, 2));
  pool.Commit(list, "", Tokens(7));
  EXPECT_EQ(pool.Match("", Tokens(8)).size(), 1);
}

TEST(BlockPoolTest, TheLeastRecentlyUsedIsEvictedTailFirst) {
  BlockPool pool(4, 4);
  {
    BlockList old;
    ASSERT_TRUE(pool.Extend(old, 2));
    pool.Commit(old, "", Tokens(8, 100));
  }
  {
    BlockList fresh;
    ASSERT_TRUE(pool.Extend(fresh, 2));
    pool.Commit(fresh, "", Tokens(8, 200));
  }
  EXPECT_EQ(pool.cached(), 4);
  BlockList taker;
  ASSERT_TRUE(pool.Extend(taker, 1));
  EXPECT_EQ(pool.Match("", Tokens(8, 100)).size(), 1) << "the tail of the older went";
  EXPECT_EQ(pool.Match("", Tokens(8, 200)).size(), 2);
  // Matching counts as use: now the older prompt's prefix is the younger.
  (void)pool.Match("", Tokens(8, 100));
  ASSERT_TRUE(pool.Extend(taker, 1));
  EXPECT_EQ(pool.Match("", Tokens(8, 100)).size(), 1);
  EXPECT_EQ(pool.Match("", Tokens(8, 200)).size(), 1);
  EXPECT_INTACT(pool);
}

TEST(BlockPoolTest, AnEvictedParentHidesItsChildren) {
  BlockPool pool(3, 4);
  BlockList first, second;
  ASSERT_TRUE(pool.Extend(first, 1));
  pool.Commit(first, "", Tokens(4));
  // A second sequence computed the same first block for itself, and a second one after it.
  ASSERT_TRUE(pool.Extend(second, 2));
  pool.Commit(second, "", Tokens(8));
  first.Clear();
  BlockList taker;
  ASSERT_TRUE(pool.Extend(taker, 1));  // evicts the shared first block
  EXPECT_EQ(pool.Match("", Tokens(8)).size(), 0);
  // Computed again by a third: the chain is new, the old child is not taken for its own.
  second.Clear();
  BlockList third;
  ASSERT_TRUE(pool.Extend(third, 1));
  pool.Commit(third, "", Tokens(4));
  EXPECT_EQ(pool.Match("", Tokens(8)).size(), 1);
  EXPECT_INTACT(pool);
}

TEST(BlockPoolTest, SharedBlocksStayUntilTheLastHolderLetsGo) {
  BlockPool pool(2, 4);
  BlockList first;
  ASSERT_TRUE(pool.Extend(first, 2));
  pool.Commit(first, "", Tokens(8));
  BlockList second = pool.Match("", Tokens(8));
  first.Clear();
  EXPECT_EQ(pool.used(), 2);
  BlockList taker;
  EXPECT_FALSE(pool.Extend(taker, 1));
  second.Clear();
  EXPECT_TRUE(pool.Extend(taker, 2));
  EXPECT_INTACT(pool);
}

TEST(BlockPoolTest, DropCachedForgetsContent) {
  BlockPool pool(2, 4);
  {
    BlockList list;
    ASSERT_TRUE(pool.Extend(list, 2));
    pool.Commit(list, "", Tokens(8));
  }
  pool.DropCached();
  EXPECT_EQ(pool.free(), 2);
  EXPECT_EQ(pool.Match("", Tokens(8)).size(), 0);
  EXPECT_INTACT(pool);
}

// Random lives of many lists against a plain model of who holds what and which tokens lie where.
TEST(BlockPoolTest, RandomLivesNeverShareUnequalContent) {
  constexpr int kBlockTokens = 4;
  BlockPool pool(40, kBlockTokens);
  std::mt19937 random(11);
  struct Life {
    BlockList list;
    std::string salt;
    std::vector<std::int32_t> tokens;
  };
  std::vector<Life> lives;
  std::map<std::int32_t, std::string> content;  // of each block, as its last writer left it
  const auto describe = [](const Life& life, int block) {
    std::string text = life.salt + ":";
    for (int i = 0; i < (block + 1) * kBlockTokens; ++i)
      text += std::to_string(life.tokens[i]) + ",";
    return text;
  };
  for (int round = 0; round < 20000; ++round) {
    if (!lives.empty() && random() % 3 == 0) {
      std::swap(lives[random() % lives.size()], lives.back());
      lives.pop_back();
      continue;
    }
    Life life;
    life.salt = random() % 2 ? "a" : "b";
    for (std::size_t i = 0, size = 1 + random() % 24; i < size; ++i)
      life.tokens.push_back(random() % 2);
    life.list = pool.Match(life.salt, life.tokens);
    for (int block = 0; block < life.list.size(); ++block) {
      ASSERT_EQ(content[life.list.ids()[block]], describe(life, block));
    }
    const int matched = life.list.size();
    const int needed = pool.BlocksFor(static_cast<std::int64_t>(life.tokens.size()));
    if (!pool.Extend(life.list, needed - matched)) continue;
    for (int block = matched; block < static_cast<int>(life.tokens.size()) / kBlockTokens;
         ++block) {
      for (const Life& other : lives) {
        for (std::int32_t id : other.list.ids()) ASSERT_NE(id, life.list.ids()[block]);
      }
      content[life.list.ids()[block]] = describe(life, block);
    }
    if (random() % 4 != 0) pool.Commit(life.list, life.salt, life.tokens);
    lives.push_back(std::move(life));
    if (round % 64 == 0) {
      ASSERT_EQ(pool.CheckIntegrity(), absl::OkStatus());
    }
  }
  lives.clear();
  EXPECT_EQ(pool.used(), 0);
  EXPECT_INTACT(pool);
}

}  // namespace
}  // namespace nibble
