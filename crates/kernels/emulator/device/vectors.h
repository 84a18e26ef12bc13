// CUDA's short vectors, with their alignments (a misaligned access is caught, as on the device).
#pragma once
#define EMU_VECTORS(T, base, a2, a4)                                                    \
    struct T##1 { base x; };                                                            \
    struct alignas(a2) T##2 { base x, y; };                                             \
    struct T##3 { base x, y, z; };                                                      \
    struct alignas(a4) T##4 { base x, y, z, w; };                                       \
    inline T##1 make_##T##1(base x) { return {x}; }                                     \
    inline T##2 make_##T##2(base x, base y) { return {x, y}; }                          \
    inline T##3 make_##T##3(base x, base y, base z) { return {x, y, z}; }               \
    inline T##4 make_##T##4(base x, base y, base z, base w) { return {x, y, z, w}; }
EMU_VECTORS(char, signed char, 2, 4)
EMU_VECTORS(uchar, unsigned char, 2, 4)
EMU_VECTORS(short, short, 4, 8)
EMU_VECTORS(ushort, unsigned short, 4, 8)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(uint, unsigned, 8, 16)
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(longlong, long long, 16, 16)
EMU_VECTORS(ulonglong, unsigned long long, 16, 16)
EMU_VECTORS(double, double, 16, 16)
#undef EMU_VECTORS
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
