// What this machine can do, tried for some milliseconds.
#pragma once

#include "runtime/device/cpu_products.h"

namespace nibble {

// Bytes a second that all threads together read from memory; 0 when there is none to try with.
double MeasureBandwidth(const CpuContext& context);

// Multiply-adds times two a second of the products that the context's compute type uses, in a
// prefill's shape; 0 when there is no memory to try with.
double MeasureFlops(const CpuContext& context);

}  // namespace nibble
