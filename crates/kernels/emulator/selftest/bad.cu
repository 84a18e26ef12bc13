// Kernels with a fault each, which the emulator must catch.
extern "C" __global__ void bad_missing_barrier(int* x) { // right in the order 0, 1, 2...: each reads what the one before wrote
    __shared__ int s[64];
    s[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = threadIdx.x ? s[threadIdx.x - 1] : 0;
}
extern "C" __global__ void bad_overrun(float* x, int n) { x[blockIdx.x * blockDim.x + threadIdx.x + (n - n)] = 1.0f; }
extern "C" __global__ void bad_barrier(int* x) {
    if (threadIdx.x < 7) __syncthreads();
    else __shfl_sync(0xffffffffu, 1, 0);
    x[threadIdx.x] = 1;
}
extern "C" __global__ void bad_shuffle(int* x) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, (int)threadIdx.x, 1);
    __syncthreads();
}
extern "C" __global__ void bad_misaligned(float* x) { *(float4*)(x + 1) = make_float4(1, 2, 3, 4); }
extern "C" __global__ void bad_shared(int* x) {
    DYNAMIC_SHARED(int, s);
    s[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void bad_uninitialised(float* x) {
    __shared__ float s[64];
    if (threadIdx.x < 32) s[threadIdx.x] = 1.0f;
    __syncthreads();
    x[threadIdx.x] = s[threadIdx.x];
}
