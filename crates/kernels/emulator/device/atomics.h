// Atomics: threads of the emulated device change only at barriers and warp operations, so plain reads and writes will do.
#pragma once
#define EMU_ATOMIC(name, T, expression)            \
    inline T name(T* p, T v) {                     \
        T old = *p;                                \
        *p = (expression);                         \
        return old;                                \
    }
#define EMU_ATOMICS(T)                             \
    EMU_ATOMIC(atomicAdd, T, old + v)              \
    EMU_ATOMIC(atomicSub, T, old - v)              \
    EMU_ATOMIC(atomicExch, T, v)                   \
    EMU_ATOMIC(atomicMax, T, old < v ? v : old)    \
    EMU_ATOMIC(atomicMin, T, v < old ? v : old)    \
    EMU_ATOMIC(atomicAnd, T, old & v)              \
    EMU_ATOMIC(atomicOr, T, old | v)               \
    EMU_ATOMIC(atomicXor, T, old ^ v)              \
    inline T atomicCAS(T* p, T compare, T v) {     \
        T old = *p;                                \
        if (old == compare) *p = v;                \
        return old;                                \
    }
EMU_ATOMICS(int)
EMU_ATOMICS(unsigned)
EMU_ATOMICS(unsigned long long)
EMU_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)
EMU_ATOMIC(atomicDec, unsigned, old == 0 || old > v ? v : old - 1)
EMU_ATOMIC(atomicAdd, float, old + v)
EMU_ATOMIC(atomicAdd, double, old + v)
EMU_ATOMIC(atomicExch, float, v)
EMU_ATOMIC(atomicAdd, __nv_bfloat16, old + v)
EMU_ATOMIC(atomicAdd, __half, old + v)
#undef EMU_ATOMICS
#undef EMU_ATOMIC
inline unsigned short atomicCAS(unsigned short* p, unsigned short compare, unsigned short v) {
    unsigned short old = *p;
    if (old == compare) *p = v;
    return old;
}
