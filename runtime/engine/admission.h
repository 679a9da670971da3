// How requests are let onto the KV pool (--admission).
#pragma once

#include <cstdint>

namespace nibble {

enum class Admission : std::uint8_t {
  kOptimistic,  // while what sequences are likely to need fits; on pressure the newest is preempted
                // by recompute
  kReserved,    // prompt and max_tokens are held from the start: never preempted
};

}  // namespace nibble
