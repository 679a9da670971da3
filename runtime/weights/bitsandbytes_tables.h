// The constants of bitsandbytes, shared by the reader of stored weights and by quantization at
// load.
#pragma once

#include <array>

namespace nibble {

// NF4: the quantiles of a normal distribution.
inline constexpr std::array<float, 16> kNf4Table = {-1.0f,
                                                    -0.6961928009986877f,
                                                    -0.5250730514526367f,
                                                    -0.39491748809814453f,
                                                    -0.28444138169288635f,
                                                    -0.18477343022823334f,
                                                    -0.09105003625154495f,
                                                    0.0f,
                                                    0.07958029955625534f,
                                                    0.16093020141124725f,
                                                    0.24611230194568634f,
                                                    0.33791524171829224f,
                                                    0.44070982933044434f,
                                                    0.5626170039176941f,
                                                    0.7229568362236023f,
                                                    1.0f};

// FP4: bit 3 is the sign, so code 8 is -0; not monotonic in the code.
inline constexpr std::array<float, 16> kFp4Table = {
    0.0f,  0.0052083333f,  0.66666669f,  1.0f,  0.33333334f,  0.5f,  0.16666667f,  0.25f,
    -0.0f, -0.0052083333f, -0.66666669f, -1.0f, -0.33333334f, -0.5f, -0.16666667f, -0.25f};

// 1 / 127 as the library writes it.
inline constexpr float kInt8Step = 0.007874015718698502f;

}  // namespace nibble
