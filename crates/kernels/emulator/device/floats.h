// bf16 and f16 as CUDA's headers have them: implicit to and from float, round to nearest even, arithmetic rounded to the
// type after each operation.
#pragma once
inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
inline int __float_as_int(float f) { return (int)__float_as_uint(f); }
inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
inline float __int_as_float(int i) { return __uint_as_float((unsigned)i); }
inline long long __double_as_longlong(double d) { long long u; memcpy(&u, &d, 8); return u; }
inline double __longlong_as_double(long long u) { double d; memcpy(&d, &u, 8); return d; }

inline unsigned short emu_to_bf16(float f) {
    unsigned u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff; // the device's only NaN
    return (unsigned short)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
inline float emu_from_bf16(unsigned short b) { return __uint_as_float((unsigned)b << 16); }
inline unsigned short emu_to_f16(float f) {
    unsigned u = __float_as_uint(f), sign = (u >> 16) & 0x8000u, m = u & 0x7fffffffu;
    if (m > 0x7f800000u) return 0x7fff;
    if (m >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u); // rounds beyond 65504
    if (m < 0x38800000u) { // subnormal: adding 0.5 places the last bit of an f16 at the last bit of the float
        return (unsigned short)(sign | (__float_as_uint(__uint_as_float(m) + 0.5f) - 0x3f000000u));
    }
    m += 0xfffu + ((m >> 13) & 1);
    return (unsigned short)(sign | ((m - 0x38000000u) >> 13));
}
inline float emu_from_f16(unsigned short h) {
    unsigned sign = (unsigned)(h & 0x8000u) << 16, m = h & 0x7fffu;
    if (m >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (m & 0x3ffu) << 13);
    if (m >= 0x0400u) return __uint_as_float(sign | ((m << 13) + 0x38000000u));
    float f = (float)m * 0x1p-24f;
    return sign ? -f : f;
}

#define EMU_FLOAT16(T, to, from)                                                                   \
    struct alignas(2) T {                                                                          \
        unsigned short bits;                                                                       \
        T() = default;                                                                             \
        T(float f) : bits(to(f)) {}                                                                \
        T(double d) : bits(to((float)d)) {}                                                        \
        T(int i) : bits(to((float)i)) {}                                                           \
        T(unsigned i) : bits(to((float)i)) {}                                                      \
        T(long i) : bits(to((float)i)) {}                                                          \
        T(unsigned long i) : bits(to((float)i)) {}                                                 \
        operator float() const { return from(bits); }                                              \
        T operator-() const { T t; t.bits = bits ^ 0x8000u; return t; }                            \
        T operator+() const { return *this; }                                                      \
        T& operator+=(T o) { return *this = T(from(bits) + from(o.bits)); }                        \
        T& operator-=(T o) { return *this = T(from(bits) - from(o.bits)); }                        \
        T& operator*=(T o) { return *this = T(from(bits) * from(o.bits)); }                        \
        T& operator/=(T o) { return *this = T(from(bits) / from(o.bits)); }                        \
    };                                                                                             \
    inline T operator+(T a, T b) { return a += b; }                                                \
    inline T operator-(T a, T b) { return a -= b; }                                                \
    inline T operator*(T a, T b) { return a *= b; }                                                \
    inline T operator/(T a, T b) { return a /= b; }                                                \
    inline bool operator<(T a, T b) { return (float)a < (float)b; }                                \
    inline bool operator>(T a, T b) { return (float)a > (float)b; }                                \
    inline bool operator<=(T a, T b) { return (float)a <= (float)b; }                              \
    inline bool operator>=(T a, T b) { return (float)a >= (float)b; }                              \
    inline bool operator==(T a, T b) { return (float)a == (float)b; }                              \
    inline bool operator!=(T a, T b) { return (float)a != (float)b; }                              \
    inline T __hadd(T a, T b) { return a + b; }                                                    \
    inline T __hsub(T a, T b) { return a - b; }                                                    \
    inline T __hmul(T a, T b) { return a * b; }                                                    \
    inline T __hdiv(T a, T b) { return a / b; }                                                    \
    inline T __hneg(T a) { return -a; }                                                            \
    inline T __habs(T a) { a.bits &= 0x7fffu; return a; }                                          \
    inline T __hfma(T a, T b, T c) { return T(fmaf((float)a, (float)b, (float)c)); }               \
    inline T __hmax(T a, T b) { return T(fmaxf((float)a, (float)b)); }                             \
    inline T __hmin(T a, T b) { return T(fminf((float)a, (float)b)); }                             \
    inline bool __hisnan(T a) { return (a.bits & 0x7fffu) > (to(INFINITY) & 0x7fffu); }            \
    inline bool __hgt(T a, T b) { return a > b; }                                                  \
    inline bool __hlt(T a, T b) { return a < b; }                                                  \
    struct alignas(4) T##2 {                                                                       \
        T x, y;                                                                                    \
        T##2() = default;                                                                          \
        T##2(T x, T y) : x(x), y(y) {}                                                             \
    };                                                                                             \
    inline float __low2float(T##2 v) { return v.x; }                                               \
    inline float __high2float(T##2 v) { return v.y; }
EMU_FLOAT16(__nv_bfloat16, emu_to_bf16, emu_from_bf16)
EMU_FLOAT16(__half, emu_to_f16, emu_from_f16)
#undef EMU_FLOAT16
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
typedef __half half;
typedef __half2 half2;

inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
inline __nv_bfloat16 __double2bfloat16(double f) { return f; }
inline float __bfloat162float(__nv_bfloat16 b) { return b; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { __nv_bfloat16 b; b.bits = u; return b; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __half __float2half(float f) { return f; }
inline __half __float2half_rn(float f) { return f; }
inline float __half2float(__half h) { return h; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline __half __ushort_as_half(unsigned short u) { __half h; h.bits = u; return h; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
