// IEEE half precision: 16 bits, converted from and to float as CUDA does, rounding to nearest even.
#pragma once

#include "cuda_runtime.h"

struct alignas(2) __half {
    uint16_t bits;
};

inline float __half2float(__half value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
    const uint32_t exponent = value.bits >> 10 & 31, fraction = value.bits & 0x3ff;
    float magnitude;
    if (exponent == 0) {
        magnitude = float(fraction) * 0x1p-24f;  // zero and subnormals, exact
    } else {
        const uint32_t bits = (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
        std::memcpy(&magnitude, &bits, 4);
    }
    uint32_t bits;
    std::memcpy(&bits, &magnitude, 4);
    bits = exponent == 31 && fraction ? 0x7fffffff : bits | sign;  // every NaN becomes the same one
    std::memcpy(&magnitude, &bits, 4);
    return magnitude;
}

inline __half __float2half_rn(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return {0x7fff};                    // NaN
    if (bits >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // rounds to more than 65504: infinity
    if (bits < 0x38800000) {                                   // below 2^-14: a multiple of 2^-24
        float magnitude;
        std::memcpy(&magnitude, &bits, 4);
        const float aligned = magnitude + 0.5f;  // float's own rounding, to multiples of 2^-24
        std::memcpy(&bits, &aligned, 4);
        return {uint16_t(sign | (bits - 0x3f000000))};
    }
    const uint32_t odd = bits >> 13 & 1;
    return {uint16_t(sign | ((bits + 0xfff + odd - 0x38000000) >> 13))};
}
