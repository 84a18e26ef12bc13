// Kernels, memory, and the faults that the emulator must catch.
#include "test.h"

static unsigned short bf16(float f) {
    unsigned u;
    memcpy(&u, &f, 4);
    return (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static float from_bf16(unsigned short b) {
    unsigned u = (unsigned)b << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static void kernels() {
    const int n = 10000;
    auto x = normal(n, 1);
    double sum = 0;
    for (float v : x) sum += v;
    for (const char* order : {"forward", "reverse", "random"}) {
        setenv("GPU_EMULATOR_ORDER", order, 1);
        auto d = upload(x), out = upload(std::vector<float>{0});
        OK(launch("self_sum", 5, 256, 0, nullptr, d, out, n));
        CHECK(fabs(download<float>(out, 1)[0] - sum) < 1e-2);
        std::vector<int> order_in(200);
        for (int i = 0; i < 200; i++) order_in[i] = i;
        auto r = upload(order_in);
        OK(launch("self_reverse", 1, 200, 800, nullptr, r));
        auto reversed = download<int>(r, 200);
        CHECK(reversed[0] == 199 && reversed[199] == 0 && reversed[50] == 149);
        auto v = upload(std::vector<unsigned>(7));
        OK(launch("self_votes", 1, 32, 0, nullptr, v));
        auto votes = download<unsigned>(v, 7);
        CHECK((votes == std::vector<unsigned>{0xaaaaaaaa, 1, 0, 5, 496, 4, 19}));
    }
    setenv("GPU_EMULATOR_ORDER", "forward", 1);
    std::vector<unsigned short> bx, by;
    for (int i = 0; i < n; i++) bx.push_back(bf16(x[i])), by.push_back(bf16(x[n - 1 - i]));
    auto dx = upload(bx), dy = upload(by);
    OK(launch("self_axpy_bf16", 40, 256, 0, nullptr, dx, dy, 2.0f, (unsigned)n));
    auto got = download<unsigned short>(dy, n);
    bool same = true;
    for (int i = 0; i < n; i++) same &= got[i] == bf16(2.0f * from_bf16(bx[i]) + from_bf16(by[i]));
    CHECK(same);

    auto a = normal(256, 2), b = normal(128, 3), c = normal(128, 4);
    std::vector<unsigned short> ba, bb;
    for (float v : a) ba.push_back(bf16(v));
    for (float v : b) bb.push_back(bf16(v));
    auto dd = upload(std::vector<float>(128));
    OK(launch("self_mma_bf16", 1, 32, 0, nullptr, upload(ba), upload(bb), upload(c), dd));
    auto d = download<float>(dd, 128);
    double worst = 0;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            double s = c[i * 8 + j];
            for (int k = 0; k < 16; k++) s += (double)from_bf16(ba[i * 16 + k]) * from_bf16(bb[k * 8 + j]);
            worst = fmax(worst, fabs(s - d[i * 8 + j]));
        }
    CHECK(worst < 1e-5);
    // f16: ones and small integers are exact
    std::vector<unsigned short> ones(256, 0x3c00), twos(128, 0x4000);
    OK(launch("self_mma_f16", 1, 32, 0, nullptr, upload(ones), upload(twos), upload(std::vector<float>(128, 1)), dd));
    CHECK(download<float>(dd, 128) == std::vector<float>(128, 33));
}
static void faults() {
    auto ints = upload(std::vector<int>(64, 3));
    OK(launch("bad_missing_barrier", 1, 64, 0, nullptr, ints));
    CHECK(download<int>(ints, 64)[5] == 3);
    setenv("GPU_EMULATOR_ORDER", "reverse", 1);
    OK(launch("bad_missing_barrier", 1, 64, 0, nullptr, ints));
    CHECK(download<int>(ints, 64)[5] != 3); // the race is seen
    setenv("GPU_EMULATOR_ORDER", "forward", 1);
    auto floats = upload(std::vector<float>(100));
    expect_death("overrun", nullptr, nullptr, "kernel bad_overrun, block (3,0,0), thread (4,0,0): illegal access at", [&] { launch("bad_overrun", 4, 32, 0, nullptr, floats, 0); });
    expect_death("use after free", nullptr, nullptr, "freed device memory", [&] {
        CUdeviceptr p = upload(std::vector<CUdeviceptr>(64));
        cuMemFree(p);
        if (launch("bad_overrun", 1, 32, 0, nullptr, p, 0) == CUDA_ERROR_ILLEGAL_ADDRESS) abort();
    });
    expect_death("barrier", nullptr, nullptr, "kernel bad_barrier, block (0,0,0)", [&] { launch("bad_barrier", 1, 64, 0, nullptr, ints); });
    expect_death("barrier", nullptr, nullptr, "at a barrier 7", [&] { launch("bad_barrier", 1, 64, 0, nullptr, ints); });
    expect_death("shuffle", nullptr, nullptr, "__shfl_xor_sync, mask 0xffffffff", [&] { launch("bad_shuffle", 1, 32, 0, nullptr, ints); });
    expect_death("misaligned", nullptr, nullptr, "misaligned", [&] { launch("bad_misaligned", 1, 1, 0, nullptr, floats); });
    expect_death("shared", nullptr, nullptr, "past the end of dynamic shared memory of 128", [&] { launch("bad_shared", 1, 64, 128, nullptr, ints); });
    OK(launch("bad_uninitialised", 1, 64, 0, nullptr, floats));
    auto u = download<float>(floats, 64);
    CHECK(u[31] == 1 && std::isnan(u[32]));
}
static void rules() {
    auto p = upload(std::vector<int>(2048));
    CHECK_CODE(launch("self_reverse", 1, 1025, 0, nullptr, p), CUDA_ERROR_INVALID_VALUE);
    CHECK_CODE(launch("self_reverse", 0, 32, 0, nullptr, p), CUDA_ERROR_INVALID_VALUE);
    CHECK_CODE(launch("self_reverse", 1, 32, 50000, nullptr, p), CUDA_ERROR_INVALID_VALUE);
    OK(cuFuncSetAttribute(function("self_reverse"), CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 60000));
    OK(launch("self_reverse", 1, 32, 50000, nullptr, p));
    CHECK_CODE(launch("self_reverse", 1, 32, 60001, nullptr, p), CUDA_ERROR_INVALID_VALUE);
    CHECK_CODE(cuFuncSetAttribute(function("self_reverse"), CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 232449), CUDA_ERROR_INVALID_VALUE);
    CHECK_CODE(launch("self_sum", 1, 512, 0, nullptr, p, p, 1), CUDA_ERROR_INVALID_VALUE); // __launch_bounds__(256)
    CUfunction f;
    CHECK_CODE(cuModuleGetFunction(&f, nullptr, "no_such_kernel"), CUDA_ERROR_NOT_FOUND);
    int v;
    OK(cuDeviceGetAttribute(&v, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 0));
    CHECK(v == 132);

    CUdeviceptr q;
    size_t before = emu_live_bytes();
    OK(cuMemAllocAsync(&q, 1001, nullptr));
    CHECK(emu_live_bytes() == before + 1001);
    CHECK(std::isnan(download<float>(q, 1)[0]));
    OK(cuMemsetD8Async(q, 7, 1001, nullptr));
    CHECK_CODE(cuMemsetD8Async(q, 7, 1002, nullptr), CUDA_ERROR_INVALID_VALUE);
    CHECK(download<unsigned char>(q, 1001)[1000] == 7);
    OK(cuMemFreeAsync(q, nullptr));
    CHECK_CODE(cuMemFreeAsync(q, nullptr), CUDA_ERROR_INVALID_VALUE);
    CHECK_CODE(cuMemcpyDtoH(&v, q, 4), CUDA_ERROR_INVALID_VALUE);
    setenv("GPU_EMULATOR_MEMORY", "1000000", 1);
    CHECK_CODE(cuMemAllocAsync(&q, 1000001, nullptr), CUDA_ERROR_OUT_OF_MEMORY);
    unsetenv("GPU_EMULATOR_MEMORY");
}
void test_device() {
    kernels();
    faults();
    rules();
}
