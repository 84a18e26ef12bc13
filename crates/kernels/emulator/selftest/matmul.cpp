// Matrix products of cuBLASLt against plain loops.
#include "test.h"

extern "C" {
int cublasLtCreate(void**);
int cublasLtMatrixLayoutCreate(void**, int, uint64_t, uint64_t, int64_t);
int cublasLtMatrixLayoutSetAttribute(void*, int, const void*, size_t);
int cublasLtMatrixLayoutDestroy(void*);
int cublasLtMatmulDescCreate(void**, int, int);
int cublasLtMatmulDescSetAttribute(void*, int, const void*, size_t);
int cublasLtMatmulDescDestroy(void*);
int cublasLtMatmulPreferenceCreate(void**);
int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t);
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*, int*);
int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*, void*, void*, const void*, void*, size_t, CUstream);
}
static void* lt;
struct Heuristic { uint64_t algo[8]; size_t workspace; int state; float waves; int reserved[4]; };
static unsigned short narrow(float f) { unsigned u; memcpy(&u, &f, 4); return (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16); }
static float wide(unsigned short b) { unsigned u = (unsigned)b << 16; float f; memcpy(&f, &u, 4); return f; }
static CUdeviceptr send(std::vector<float>& v, bool bf16) {
    if (!bf16) return upload(v);
    std::vector<unsigned short> b;
    for (auto& x : v) b.push_back(narrow(x)), x = wide(b.back());
    return upload(b);
}
static std::vector<float> receive(CUdeviceptr p, size_t n, bool bf16) {
    if (!bf16) return download<float>(p, n);
    std::vector<float> v;
    for (auto b : download<unsigned short>(p, n)) v.push_back(wide(b));
    return v;
}
static void product(int ta, int tb, bool bf16, bool bf16_out, unsigned epilogue) {
    const size_t m = 24, n = 17, k = 40, batches = 2, pad = 3;
    size_t ra = ta ? k : m, ca = ta ? m : k, rb = tb ? n : k, cb = tb ? k : n, lda = ra + pad, ldb = rb + pad, ldd = m + pad;
    auto a = normal(lda * ca * batches, 1), b = normal(ldb * cb * batches, 2), c = normal(ldd * n * batches, 3), bias = normal(m, 4);
    auto A = send(a, bf16), B = send(b, bf16), D = send(c, bf16_out);
    size_t bias_length = epilogue == 512 ? n : m;
    bias.resize(bias_length);
    auto V = send(bias, bf16_out);
    int type = bf16 ? 14 : 0, out = bf16_out ? 14 : 0, count = batches, zero = 0;
    int64_t sa = lda * ca, sb = ldb * cb, sd = ldd * n;
    void *o, *la, *lb, *ld, *preference;
    OK(cublasLtMatmulDescCreate(&o, 68, 0));
    OK(cublasLtMatmulDescSetAttribute(o, 3, &ta, 4));
    OK(cublasLtMatmulDescSetAttribute(o, 4, &tb, 4));
    OK(cublasLtMatmulDescSetAttribute(o, 7, &epilogue, 4));
    OK(cublasLtMatmulDescSetAttribute(o, 8, &V, 8));
    CHECK_CODE(cublasLtMatmulDescSetAttribute(o, 8, &zero, 4), 7);
    OK(cublasLtMatrixLayoutCreate(&la, type, ra, ca, lda));
    OK(cublasLtMatrixLayoutCreate(&lb, type, rb, cb, ldb));
    OK(cublasLtMatrixLayoutCreate(&ld, out, m, n, ldd));
    int i = 0;
    for (void* l : {la, lb, ld}) {
        OK(cublasLtMatrixLayoutSetAttribute(l, 5, &count, 4));
        OK(cublasLtMatrixLayoutSetAttribute(l, 6, i == 0 ? &sa : i == 1 ? &sb : &sd, 8));
        i++;
    }
    size_t limit = 2 << 20;
    Heuristic found[8];
    int got;
    OK(cublasLtMatmulPreferenceCreate(&preference));
    OK(cublasLtMatmulPreferenceSetAttribute(preference, 1, &limit, 8));
    OK(cublasLtMatmulAlgoGetHeuristic(lt, o, la, lb, ld, ld, preference, 8, found, &got));
    CHECK(got == 2);
    CUdeviceptr workspace;
    OK(cuMemAlloc(&workspace, limit));
    float alpha = 1.5f, beta = 0.5f;
    CHECK_CODE(cublasLtMatmul(lt, o, &alpha, (void*)A, la, (void*)B, lb, &beta, (void*)D, ld, (void*)D, ld, &found[0], (void*)workspace, 1000, nullptr), 7);
    CHECK_CODE(cublasLtMatmul(lt, o, &alpha, (void*)A, la, (void*)(B + 4), lb, &beta, (void*)D, ld, (void*)D, ld, &found[0], (void*)workspace, limit, nullptr), 7);
    OK(cublasLtMatmul(lt, o, &alpha, (void*)A, la, (void*)B, lb, &beta, (void*)D, ld, (void*)D, ld, &found[0], (void*)workspace, limit, nullptr));
    auto d = receive(D, c.size(), bf16_out), v = receive(V, bias_length, bf16_out);
    double worst = 0, worst_bias = 0, scale = bf16_out ? 1.0 / 256 : 1e-6;
    for (size_t t = 0; t < batches; t++)
        for (size_t col = 0; col < n; col++)
            for (size_t row = 0; row < m; row++) {
                double s = 0;
                for (size_t l = 0; l < k; l++)
                    s += (double)a[t * sa + (ta ? l + row * lda : row + l * lda)] * b[t * sb + (tb ? col + l * ldb : l + col * ldb)];
                s = 1.5 * s + 0.5 * c[t * sd + row + col * ldd] + (epilogue == 4 ? bias[row] : 0);
                worst = fmax(worst, fabs(s - d[t * sd + row + col * ldd]) / (10 + fabs(s)));
            }
    CHECK(worst < scale);
    for (size_t row = 0; epilogue >= 256 && row < bias_length; row++) {
        double s = 0;
        for (size_t l = 0; l < k; l++)
            s += epilogue == 256 ? a[sa + (ta ? l + row * lda : row + l * lda)] : b[sb + (tb ? row + l * ldb : l + row * ldb)];
        worst_bias = fmax(worst_bias, fabs(s - v[row]) / (10 + fabs(s)));
    }
    CHECK(worst_bias < scale);
    CHECK(d[m] == c[m]); // what lies between the columns is left alone
}
void test_matmul() {
    OK(cublasLtCreate(&lt));
    for (int ta : {0, 1})
        for (int tb : {0, 1}) {
            product(ta, tb, false, false, 1);
            product(ta, tb, true, true, 4);
            product(ta, tb, true, false, 256);
            product(ta, tb, true, true, 512);
        }
    // refused: ReLU; fast TF32 on bf16; shapes
    void *o, *l, *p;
    Heuristic found[1];
    int got = -1;
    unsigned relu = 2;
    OK(cublasLtMatmulDescCreate(&o, 68, 0));
    OK(cublasLtMatmulDescSetAttribute(o, 7, &relu, 4));
    OK(cublasLtMatrixLayoutCreate(&l, 14, 8, 8, 8));
    OK(cublasLtMatmulPreferenceCreate(&p));
    CHECK_CODE(cublasLtMatmulAlgoGetHeuristic(lt, o, l, l, l, l, p, 1, found, &got), 15);
    OK(cublasLtMatmulDescCreate(&o, 77, 0));
    CHECK_CODE(cublasLtMatmulAlgoGetHeuristic(lt, o, l, l, l, l, p, 1, found, &got), 15);
    void* wrong;
    OK(cublasLtMatmulDescCreate(&o, 68, 0));
    OK(cublasLtMatrixLayoutCreate(&wrong, 14, 8, 9, 8));
    CHECK_CODE(cublasLtMatmulAlgoGetHeuristic(lt, o, l, l, l, wrong, p, 1, found, &got), 7);
    CHECK(got == 0);
}
