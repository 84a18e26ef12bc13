// Arrays of f32, bf16 and f16 read as f32 and written with one rounding, for the libraries.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>
#include "device/vectors.h"
#include "device/floats.h"

namespace emu {
enum class Number { F32, BF16, F16, None };
inline size_t size_of(Number n) { return n == Number::F32 ? 4 : 2; }
inline float read(Number n, const void* p, size_t i) {
    if (n == Number::F32) return ((const float*)p)[i];
    unsigned short bits = ((const unsigned short*)p)[i];
    return n == Number::BF16 ? emu_from_bf16(bits) : emu_from_f16(bits);
}
inline void write(Number n, void* p, size_t i, float v) {
    if (n == Number::F32) ((float*)p)[i] = v;
    else ((unsigned short*)p)[i] = n == Number::BF16 ? emu_to_bf16(v) : emu_to_f16(v);
}
inline float round_to(Number n, float v) {
    return n == Number::F32 ? v : n == Number::BF16 ? emu_from_bf16(emu_to_bf16(v)) : emu_from_f16(emu_to_f16(v));
}
} // namespace emu
