// Checks of the emulator's self-test, and a small device to run them on.
#pragma once
#include <cuda.h>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

extern "C" {
void emu_reset();
long emu_get(const char* prefix);
void emu_dump();
size_t emu_live_bytes();
size_t emu_peak_bytes();
}
extern int failures;
void report(bool good, const char* what, const char* file, int line);
#define CHECK(x) report((x), #x, __FILE__, __LINE__)
#define CHECK_CODE(x, code)                                                                                 \
    do {                                                                                                    \
        int got_ = (int)(x);                                                                                \
        if (got_ != (int)(code)) fprintf(stderr, "  got %d, expected %d\n", got_, (int)(code));             \
        report(got_ == (int)(code), #x, __FILE__, __LINE__);                                                \
    } while (0)
#define OK(x) CHECK_CODE(x, 0)

// Runs f in a process of its own, with one more variable of the environment; it must die and say `text`.
void expect_death(const char* what, const char* variable, const char* value, const char* text, const std::function<void()>& f);
CUfunction function(const char* name);
template <class... A> CUresult launch(const char* name, unsigned grid, unsigned block, unsigned shared, CUstream s, A... a) {
    void* values[] = {(void*)&a..., nullptr};
    return cuLaunchKernel(function(name), grid, 1, 1, block, 1, 1, shared, s, values, nullptr);
}
template <class T> CUdeviceptr upload(const std::vector<T>& v) {
    CUdeviceptr p = 0;
    OK(cuMemAlloc(&p, v.size() * sizeof(T)));
    OK(cuMemcpyHtoD(p, v.data(), v.size() * sizeof(T)));
    return p;
}
template <class T> std::vector<T> download(CUdeviceptr p, size_t n) {
    std::vector<T> v(n);
    OK(cuMemcpyDtoH(v.data(), p, n * sizeof(T)));
    return v;
}
inline std::vector<float> normal(size_t n, unsigned seed) {
    std::mt19937 g(seed);
    std::normal_distribution<float> d;
    std::vector<float> v(n);
    for (auto& x : v) x = d(g);
    return v;
}
void test_device();
void test_graphs();
void test_matmul();
void test_convolutions();
