// What this binary was built from.
#pragma once

#include "runtime/metrics.h"

namespace nibble {

BuildInfo ThisBuild();

}  // namespace nibble
