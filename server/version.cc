#include "server/version.h"

#ifndef NIBBLE_VERSION
#define NIBBLE_VERSION "unknown"
#endif
#ifndef NIBBLE_REVISION
#define NIBBLE_REVISION "unknown"
#endif

namespace nibble {

BuildInfo ThisBuild() {
#ifdef NIBBLE_WITH_CUDA
  return {.version = NIBBLE_VERSION, .revision = NIBBLE_REVISION, .backends = "cpu,cuda"};
#else
  return {.version = NIBBLE_VERSION, .revision = NIBBLE_REVISION, .backends = "cpu"};
#endif
}

}  // namespace nibble
