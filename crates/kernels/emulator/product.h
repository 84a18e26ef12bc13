// D = alpha op(A) op(B) + beta C by columns, summed in f32 and rounded once: the heart of cuBLAS and cuBLASLt.
#pragma once
#include "numbers.h"
#include <algorithm>

namespace emu {
struct Matrix {
    Number type = Number::F32;
    char* data = nullptr;
    size_t ld = 0;
    bool transposed = false;
    float at(size_t row, size_t column) const { return read(type, data, transposed ? column + row * ld : row + column * ld); }
};
// The rows of op(A) contiguous for each k, as f32.
inline std::vector<float> packed(const Matrix& a, size_t m, size_t k) {
    std::vector<float> p(m * k);
    const size_t T = 32; // by tiles, so that a transposed matrix is not read across
    for (size_t j0 = 0; j0 < k; j0 += T)
        for (size_t i0 = 0; i0 < m; i0 += T)
            for (size_t j = j0; j < std::min(k, j0 + T); j++)
                for (size_t i = i0; i < std::min(m, i0 + T); i++) p[j * m + i] = a.at(i, j);
    return p;
}
struct Epilogue {
    const float* bias = nullptr; // one for each row of D
    float* sums_of_a = nullptr;  // of op(A) over k, one for each row of D
    float* sums_of_b = nullptr;  // of op(B) over k, one for each column of D
};
inline void multiply(const Matrix& a, const Matrix& b, const Matrix& c, const Matrix& d, size_t m, size_t n, size_t k, float alpha,
                     float beta, const Epilogue& e = {}) {
    std::vector<float> pa = packed(a, m, k);
    if (e.sums_of_a)
        for (size_t i = 0; i < m; i++) {
            e.sums_of_a[i] = 0;
            for (size_t j = 0; j < k; j++) e.sums_of_a[i] += pa[j * m + i];
        }
    const size_t COLUMNS = 4;
    std::vector<float> sums(COLUMNS * m);
    for (size_t j0 = 0; j0 < n; j0 += COLUMNS) {
        size_t columns = std::min(COLUMNS, n - j0);
        std::fill(sums.begin(), sums.end(), 0.0f);
        float sums_of_b[COLUMNS] = {};
        for (size_t l = 0; l < k; l++) {
            float v[COLUMNS] = {};
            for (size_t j = 0; j < columns; j++) sums_of_b[j] += v[j] = b.at(l, j0 + j);
            const float* __restrict x = &pa[l * m];
            float *__restrict s0 = &sums[0], *__restrict s1 = &sums[m], *__restrict s2 = &sums[2 * m], *__restrict s3 = &sums[3 * m];
            for (size_t i = 0; i < m; i++) {
                s0[i] += x[i] * v[0];
                s1[i] += x[i] * v[1];
                s2[i] += x[i] * v[2];
                s3[i] += x[i] * v[3];
            }
        }
        for (size_t j = 0; j < columns; j++) {
            if (e.sums_of_b) e.sums_of_b[j0 + j] = sums_of_b[j];
            for (size_t i = 0; i < m; i++) {
                float v = alpha * sums[j * m + i];
                if (beta != 0) v += beta * c.at(i, j0 + j);
                if (e.bias) v += e.bias[i];
                write(d.type, d.data, i + (j0 + j) * d.ld, v);
            }
        }
    }
}
inline Number cuda_number(int type) {
    return type == 0 ? Number::F32 : type == 2 ? Number::F16 : type == 14 ? Number::BF16 : Number::None;
}
enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
} // namespace emu
