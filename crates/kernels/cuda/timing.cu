// What is timed must not wait for the host that queues it: so this runs first, while the host gets ahead.
#include "common.cuh"

extern "C" __global__ void busy(u64 cycles) {
    const long long start = clock64();
    while ((u64)(clock64() - start) < cycles) {}
}
