// Warp operations, all by emu_exchange: each lane gives a value and reads what the others gave. A lane that has returned
// or does not exist gives 0xFF bytes (a NaN), so a result that depends on it is seen.
#pragma once
inline void __syncwarp(unsigned mask = 0xffffffffu) { emu_exchange(mask, nullptr, 0, "__syncwarp"); }
inline unsigned __activemask() { return emu_active_mask(); }

template <class T> inline T emu_shuffle(unsigned mask, T v, int source, const char* kind) {
    static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>, "a shuffle takes a plain value");
    const unsigned char* all = emu_exchange(mask, &v, sizeof(T), kind);
    T result;
    memcpy(&result, all + 64 * source, sizeof(T));
    return result;
}
template <class T> inline T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
    int lane = (int)emu_here.lane;
    return emu_shuffle(mask, v, (lane & ~(width - 1)) | (source & (width - 1)), "__shfl_sync");
}
template <class T> inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    int lane = (int)emu_here.lane, source = lane - (int)delta;
    return emu_shuffle(mask, v, source < (lane & ~(width - 1)) ? lane : source, "__shfl_up_sync");
}
template <class T> inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    int lane = (int)emu_here.lane, source = lane + (int)delta;
    return emu_shuffle(mask, v, source > (lane | (width - 1)) ? lane : source, "__shfl_down_sync");
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
    int lane = (int)emu_here.lane, source = lane ^ bits;
    return emu_shuffle(mask, v, source > (lane | (width - 1)) ? lane : source, "__shfl_xor_sync");
}
inline unsigned emu_ballot(unsigned mask, int predicate, const char* kind, unsigned* present) {
    unsigned char vote = predicate != 0, ballot_lane;
    const unsigned char* all = emu_exchange(mask, &vote, 1, kind);
    unsigned bits = 0;
    *present = 0;
    for (int l = 0; l < 32; l++) {
        ballot_lane = all[64 * l];
        if (!(mask >> l & 1) || ballot_lane == 0xff) continue;
        *present |= 1u << l;
        bits |= (unsigned)ballot_lane << l;
    }
    return bits;
}
inline unsigned __ballot_sync(unsigned mask, int p) { unsigned here; return emu_ballot(mask, p, "__ballot_sync", &here); }
inline int __any_sync(unsigned mask, int p) { unsigned here; return emu_ballot(mask, p, "__any_sync", &here) != 0; }
inline int __all_sync(unsigned mask, int p) { unsigned here; unsigned bits = emu_ballot(mask, p, "__all_sync", &here); return bits == here; }

template <class T, class F> inline T emu_reduce(unsigned mask, T v, F f, const char* kind) {
    struct { T value; unsigned char here; } mine{v, 1}, other;
    const unsigned char* all = emu_exchange(mask, &mine, sizeof mine, kind);
    bool first = true;
    T result{};
    for (int l = 0; l < 32; l++) {
        memcpy(&other, all + 64 * l, sizeof other);
        if (!(mask >> l & 1) || other.here != 1) continue;
        result = first ? other.value : f(result, other.value);
        first = false;
    }
    return result;
}
#define EMU_REDUCE(name, T, expression) \
    inline T name(unsigned mask, T v) { return emu_reduce(mask, v, [](T a, T b) { return (T)(expression); }, #name); }
EMU_REDUCE(__reduce_add_sync, int, a + b)
EMU_REDUCE(__reduce_add_sync, unsigned, a + b)
EMU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
EMU_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
EMU_REDUCE(__reduce_max_sync, int, a < b ? b : a)
EMU_REDUCE(__reduce_max_sync, unsigned, a < b ? b : a)
EMU_REDUCE(__reduce_and_sync, unsigned, a & b)
EMU_REDUCE(__reduce_or_sync, unsigned, a | b)
EMU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef EMU_REDUCE

// mma.sync.aligned.m16n8k16.row.col.f32.T.T.f32 with its layout of fragments: with g = lane / 4 and t = lane % 4, a[0..4]
// hold rows g, g + 8, g, g + 8 at k = 2t, 2t, 2t + 8, 2t + 8 (and the next k above); b[0..2] hold column g at k = 2t and
// 2t + 8; c and d hold (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <class T>
inline void mma_m16n8k16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4], T) {
    static_assert(sizeof(T) == 2, "bf16 or f16");
    struct { unsigned a[4], b[2]; } mine, other;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    const unsigned char* all = emu_exchange(0xffffffffu, &mine, sizeof mine, "mma_m16n8k16");
    unsigned lane = emu_here.lane, g = lane / 4, t = lane % 4;
    auto half_of = [](unsigned word, int k) {
        T v;
        unsigned short bits = (unsigned short)(word >> 16 * (k & 1));
        memcpy(&v, &bits, 2);
        return (double)(float)v;
    };
    for (int i = 0; i < 4; i++) {
        unsigned high = i / 2, column = 2 * t + i % 2;
        double sum = 0;
        for (unsigned k = 0; k < 16; k++) {
            memcpy(&other, all + 64 * (g * 4 + k % 8 / 2), sizeof other);
            double x = half_of(other.a[high + 2 * (k / 8)], (int)k);
            memcpy(&other, all + 64 * (column * 4 + k % 8 / 2), sizeof other);
            sum += x * half_of(other.b[k / 8], (int)k);
        }
        d[i] = (float)(sum + (double)c[i]);
    }
}
