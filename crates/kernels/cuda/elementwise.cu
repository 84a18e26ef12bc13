// Small operations that move or add numbers: sums, multiples, SiLU.
#include "common.cuh"

template <typename T> __device__ void add(const T *a, const T *b, T *y, u64 n) {
    for (u64 i = global_thread(); i < n; i += global_threads()) y[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}

#define ADD(T, S) \
    extern "C" __global__ void add_##S(const T *a, const T *b, T *y, u64 n) { add<T>(a, b, y, n); }
FOR_EACH_FLOAT(ADD)
