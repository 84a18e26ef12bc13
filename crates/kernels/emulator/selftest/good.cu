// Kernels that are right: reductions by barriers and shuffles, tensor-core products, dynamic shared memory.
template <typename T> __device__ T warp_sum(T v) {
    for (int d = 16; d > 0; d /= 2) v += __shfl_down_sync(0xffffffffu, v, d);
    return v;
}
extern "C" __global__ void __launch_bounds__(256) self_sum(const float* x, float* out, int n) {
    __shared__ float part[32];
    float v = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = threadIdx.x < (blockDim.x + 31) / 32 ? part[threadIdx.x] : 0.0f;
        v = warp_sum(v);
        if (threadIdx.x == 0) atomicAdd(out, v);
    }
}
#define AXPY(suffix, T)                                                                         \
    extern "C" __global__ void self_axpy_##suffix(const T* x, T* y, float a, unsigned n) {     \
        unsigned i = blockIdx.x * blockDim.x + threadIdx.x;                                     \
        if (i < n) y[i] = T(a * (float)x[i] + (float)y[i]);                                     \
    }
AXPY(f32, float) AXPY(bf16, __nv_bfloat16) AXPY(f16, __half)
// One warp: D[16, 8] = A[16, 16] B[16, 8] + C, A by rows, B by rows.
template <typename T> __device__ void product(const T* a, const T* b, const float* c, float* d) {
    unsigned g = threadIdx.x / 4, t = threadIdx.x % 4, fa[4], fb[2];
    auto pair = [](T low, T high) { return (unsigned)*(unsigned short*)&low | (unsigned)*(unsigned short*)&high << 16; };
    for (unsigned i = 0; i < 4; i++) {
        const T* p = a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
        fa[i] = pair(p[0], p[1]);
    }
    for (unsigned i = 0; i < 2; i++) fb[i] = pair(b[(2 * t + 8 * i) * 8 + g], b[(2 * t + 8 * i + 1) * 8 + g]);
    unsigned at[4] = {g * 8 + 2 * t, g * 8 + 2 * t + 1, (g + 8) * 8 + 2 * t, (g + 8) * 8 + 2 * t + 1};
    float fc[4], fd[4];
    for (int i = 0; i < 4; i++) fc[i] = c[at[i]];
    mma_m16n8k16(fd, fa, fb, fc, T());
    for (int i = 0; i < 4; i++) d[at[i]] = fd[i];
}
extern "C" __global__ void self_mma_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, const float* c, float* d) { product(a, b, c, d); }
extern "C" __global__ void self_mma_f16(const __half* a, const __half* b, const float* c, float* d) { product(a, b, c, d); }
extern "C" __global__ void self_reverse(int* x) {
    DYNAMIC_SHARED(int, s);
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void self_votes(unsigned* out) {
    unsigned odd = __ballot_sync(0xffffffffu, threadIdx.x & 1);
    int any = __any_sync(0xffffffffu, threadIdx.x == 7), all = __all_sync(0xffffffffu, threadIdx.x < 31);
    int many = __syncthreads_count(threadIdx.x < 5);
    unsigned sum = __reduce_add_sync(0xffffffffu, (unsigned)threadIdx.x);
    int next = __shfl_sync(0xffffffffu, (int)threadIdx.x, threadIdx.x + 1), half = __shfl_xor_sync(0xffffffffu, (int)threadIdx.x, 16);
    if (threadIdx.x == 3) out[0] = odd, out[1] = any, out[2] = all, out[3] = many, out[4] = sum, out[5] = next, out[6] = half;
}
