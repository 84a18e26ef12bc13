// What candle's own kernels use beyond ours, so that they can be emulated too.
#pragma once
using std::signbit;
inline float normcdf(float x) { return normcdff(x); }
inline double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752440); }
#define EMU_HALF_FUNCTIONS(T)                                                                \
    inline T hsqrt(T x) { return T(sqrtf(x)); }                                              \
    inline T hcos(T x) { return T(cosf(x)); }                                                \
    inline T hsin(T x) { return T(sinf(x)); }                                                \
    inline T hexp(T x) { return T(expf(x)); }                                                \
    inline T hlog(T x) { return T(logf(x)); }                                                \
    inline T hceil(T x) { return T(ceilf(x)); }                                              \
    inline T hfloor(T x) { return T(floorf(x)); }                                            \
    inline T hrcp(T x) { return T(1.0f / (float)x); }                                        \
    inline T##2 __hadd2(T##2 a, T##2 b) { return {a.x + b.x, a.y + b.y}; }                   \
    inline T##2 __hmul2(T##2 a, T##2 b) { return {a.x * b.x, a.y * b.y}; }                   \
    inline T __hmax_nan(T a, T b) { return __hisnan(a) ? a : __hisnan(b) ? b : __hmax(a, b); } \
    inline T __hmin_nan(T a, T b) { return __hisnan(a) ? a : __hisnan(b) ? b : __hmin(a, b); }
EMU_HALF_FUNCTIONS(__half)
EMU_HALF_FUNCTIONS(__nv_bfloat16)
#undef EMU_HALF_FUNCTIONS

// f8 is there to compile; it computes nothing.
struct __nv_fp8_e4m3 {
    unsigned char __x;
    __nv_fp8_e4m3() = default;
    template <class T> explicit __nv_fp8_e4m3(T) { emu_trap("f8 is not emulated"); }
    operator float() const { emu_trap("f8 is not emulated"); }
};
enum { __NV_E4M3 };
inline __half __nv_cvt_fp8_to_halfraw(unsigned char, int) { emu_trap("f8 is not emulated"); }
