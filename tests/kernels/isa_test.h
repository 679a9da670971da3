// Tests that run once an instruction set.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "kernels/cpu/kernel_table.h"

namespace nibble {

inline std::string IsaName(const ::testing::TestParamInfo<cpu::Isa>& info) {
  std::string name = cpu::KernelsOf(info.param).name;
  std::erase_if(name, [](char c) { return c == '-' || c == ' '; });
  return name;
}

class IsaTest : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  void SetUp() override {
    if (!cpu::Supported(GetParam()))
      GTEST_SKIP() << "this machine has no " << cpu::KernelsOf(GetParam()).name;
  }
  const cpu::KernelTable& kernels() const { return cpu::KernelsOf(GetParam()); }
};

}  // namespace nibble
