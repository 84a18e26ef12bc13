// cublasLtMatmul and its heuristics: what the real library documents as supported, checked, and run.
#include "descriptors.h"
#include <cstdlib>

namespace emu {
enum { DEFAULT = 1, BIAS = 4, BGRADA = 256, BGRADB = 512 };
struct Problem {
    Number a, b, c, d, bias;
    size_t m, n, k, batches;
    uint64_t kinds; // types, transpositions and epilogue: what an algorithm was chosen for
};
static int check(const Operation* o, const Layout* a, const Layout* b, const Layout* c, const Layout* d, Problem& p, const char* f) {
    if (!o || o->magic != OPERATION) return refuse(INVALID_VALUE, f, "not a description of an operation");
    for (auto* l : {a, b, c, d})
        if (!l || l->magic != LAYOUT) return refuse(INVALID_VALUE, f, "not the layout of a matrix");
    p.a = cuda_number(a->type), p.b = cuda_number(b->type), p.c = cuda_number(c->type), p.d = cuda_number(d->type);
    for (auto* l : {a, b, c, d}) {
        if (cuda_number(l->type) == Number::None) return refuse(NOT_SUPPORTED, f, "a type that is not emulated (f32, bf16, f16 are)");
        if (l->order != 0) return refuse(NOT_SUPPORTED, f, "an order other than by columns");
        if (!l->rows || !l->columns) return refuse(INVALID_VALUE, f, "an empty matrix");
        if (l->ld < (int64_t)l->rows) return refuse(INVALID_VALUE, f, "a leading dimension below the number of rows");
        if (l->batches < 1 || l->batches != d->batches) return refuse(INVALID_VALUE, f, "batch counts differ");
    }
    bool fast = o->compute == 77 || o->compute == 74 || o->compute == 75; // FAST_TF32, FAST_16F, FAST_16BF
    if (o->compute != 68 && o->compute != 69 && !fast) return refuse(NOT_SUPPORTED, f, "a compute type other than 32F");
    if (o->scale != 0) return refuse(NOT_SUPPORTED, f, "a scale type other than 32F");
    if (o->pointer_mode != 0) return refuse(NOT_SUPPORTED, f, "alpha and beta on the device are not emulated");
    if (o->transc != 0) return refuse(NOT_SUPPORTED, f, "a transposed C");
    if (p.a != p.b || p.c != p.d || !(p.c == p.a || p.c == Number::F32)) return refuse(NOT_SUPPORTED, f, "this combination of types");
    if (fast && p.a != Number::F32) return refuse(NOT_SUPPORTED, f, "the fast compute types take f32 matrices");
    for (int t : {o->transa, o->transb})
        if (t < 0 || t > 2) return refuse(INVALID_VALUE, f, "a transposition");
    p.m = o->transa ? a->columns : a->rows;
    p.k = o->transa ? a->rows : a->columns;
    p.n = o->transb ? b->rows : b->columns;
    if (p.k != (o->transb ? b->columns : b->rows) || d->rows != p.m || d->columns != p.n || c->rows != p.m || c->columns != p.n)
        return refuse(INVALID_VALUE, f, "the shapes do not fit");
    p.batches = (size_t)d->batches;
    // One after the other, or side by side within the rows.
    const int64_t after = (int64_t)((p.n - 1) * (size_t)d->ld + p.m), beside = (int64_t)((p.batches - 1) * (size_t)d->stride + p.m);
    if (p.batches > 1 && d->stride < after && (d->stride < (int64_t)p.m || beside > (int64_t)d->ld))
        return refuse(INVALID_VALUE, f, "the batches of D overlap");
    p.bias = p.d;
    if (o->epilogue != DEFAULT) {
        if (o->epilogue != BIAS && o->epilogue != BGRADA && o->epilogue != BGRADB)
            return refuse(NOT_SUPPORTED, f, "an epilogue other than DEFAULT, BIAS, BGRADA and BGRADB");
        if (o->bias_type != -1) p.bias = cuda_number(o->bias_type);
        if (p.bias != p.d) return refuse(NOT_SUPPORTED, f, "a bias of another type than D's");
    }
    p.kinds = (uint64_t)a->type | (uint64_t)d->type << 8 | (uint64_t)o->transa << 16 | (uint64_t)o->transb << 20 | (uint64_t)o->epilogue << 24 | 1ull << 40;
    return SUCCESS;
}
static size_t span(const Layout* l, Number t) {
    return ((size_t)(l->batches - 1) * (size_t)l->stride + (l->columns - 1) * (size_t)l->ld + l->rows) * size_of(t);
}
static Matrix batch(char* data, Number t, const Layout* l, size_t i, bool transposed) {
    return {t, data + (int64_t)i * l->stride * (int64_t)size_of(t), (size_t)l->ld, transposed};
}
static int matmul(const Operation* o, float alpha, char* A, const Layout* a, char* B, const Layout* b, float beta, char* C, const Layout* c,
                  char* D, const Layout* d, const Algorithm* algo, char* workspace, size_t bytes, CUstream stream) {
    const char* f = "cublasLtMatmul";
    Problem p;
    if (int s = check(o, a, b, c, d, p, f)) return s;
    if (!A || !B || !D || (beta != 0 && !C)) return refuse(INVALID_VALUE, f, "a null matrix");
    size_t alignment = algo ? std::min<size_t>(algo->alignment, 16) : 1;
    for (auto [x, t] : {std::pair{A, p.a}, {B, p.b}, {C, p.c}, {D, p.d}})
        if ((uintptr_t)x % size_of(t) || (uintptr_t)x % alignment)
            return refuse(INVALID_VALUE, f, "a matrix is less aligned than the preference said when the algorithm was chosen (256 bytes unless set)");
    size_t scratch = 0;
    if (algo) {
        if (algo->magic != ALGORITHM) return refuse(INVALID_VALUE, f, "not an algorithm");
        if (algo->kinds != p.kinds) return refuse(NOT_SUPPORTED, f, "the algorithm was chosen for other types, transpositions or epilogue");
        scratch = algo->workspace;
        if (scratch > bytes || (scratch && !workspace)) return refuse(INVALID_VALUE, f, "the workspace is smaller than the algorithm needs");
    }
    bool bias = o->epilogue != DEFAULT;
    if (bias && !o->bias) return refuse(INVALID_VALUE, f, "the epilogue has no bias pointer");
    if (bias && (uintptr_t)o->bias % size_of(p.bias)) return refuse(INVALID_VALUE, f, "a misaligned bias");
    size_t bias_length = o->epilogue == BGRADB ? p.n : p.m;
    auto device = [&](const void* x, size_t n) { return device_range((CUdeviceptr)x, n); };
    if (!device(A, span(a, p.a)) || !device(B, span(b, p.b)) || !device(D, span(d, p.d)) || (beta != 0 && !device(C, span(c, p.c))) ||
        (scratch && !device(workspace, scratch)) ||
        (bias && !device(o->bias, ((p.batches - 1) * (size_t)o->bias_stride + bias_length) * size_of(p.bias))))
        return refuse(EXECUTION_FAILED, f, "a matrix, the bias or the workspace is not (all) device memory");
    Operation op = *o;
    Layout la = *a, lb = *b, lc = *c, ld = *d;
    auto run = [=]() -> CUresult {
        if (skip()) return CUDA_SUCCESS;
        if (scratch) memset(workspace, 0xff, scratch);
        for (size_t i = 0; i < p.batches; i++) {
            std::vector<float> vector(bias ? bias_length : 0);
            Epilogue e;
            char* at = op.bias + (bias ? (int64_t)i * op.bias_stride * (int64_t)size_of(p.bias) : 0);
            if (op.epilogue == BIAS) {
                for (size_t j = 0; j < bias_length; j++) vector[j] = read(p.bias, at, j);
                e.bias = vector.data();
            }
            if (op.epilogue == BGRADA) e.sums_of_a = vector.data();
            if (op.epilogue == BGRADB) e.sums_of_b = vector.data();
            multiply(batch(A, p.a, &la, i, op.transa), batch(B, p.b, &lb, i, op.transb), batch(C, p.c, &lc, i, false),
                     batch(D, p.d, &ld, i, false), p.m, p.n, p.k, alpha, beta, e);
            if (e.sums_of_a || e.sums_of_b)
                for (size_t j = 0; j < bias_length; j++) write(p.bias, at, j, vector[j]);
        }
        return CUDA_SUCCESS;
    };
    return submit(stream, op.epilogue == BGRADB ? "kernel cublasLt bgradb" : "kernel cublasLt", run) ? EXECUTION_FAILED : SUCCESS;
}
struct Result {
    Algorithm algo;
    uint64_t rest[3];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
static char handle; // its address is the only handle
} // namespace emu
using namespace emu;

API int cublasLtCreate(void** h) { *h = &handle; return SUCCESS; }
API int cublasLtDestroy(void* h) { return h == &handle ? SUCCESS : NOT_INITIALIZED; }
API size_t cublasLtGetVersion() { return 130100; }
API size_t cublasLtGetCudartVersion() { return 13000; }
API const char* cublasLtGetStatusName(int s) { return s == 0 ? "CUBLAS_STATUS_SUCCESS" : s == 7 ? "CUBLAS_STATUS_INVALID_VALUE" : s == 15 ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS"; }
API const char* cublasLtGetStatusString(int s) { return cublasLtGetStatusName(s); }
API int cublasLtMatmul(void* h, Operation* o, const float* alpha, const void* A, Layout* a, const void* B, Layout* b, const float* beta,
                       const void* C, Layout* c, void* D, Layout* d, const Algorithm* algo, void* workspace, size_t bytes, CUstream stream) {
    if (h != &handle) return NOT_INITIALIZED;
    if (!alpha || !beta) return INVALID_VALUE;
    Lock lock;
    return matmul(o, *alpha, (char*)A, a, (char*)B, b, *beta, (char*)C, c, (char*)D, d, algo, (char*)workspace, bytes, stream);
}
API int cublasLtMatmulAlgoGetHeuristic(void* h, Operation* o, Layout* a, Layout* b, Layout* c, Layout* d, Preference* preference, int wanted,
                                       Result* results, int* got) {
    static_assert(sizeof(Result) == 64 + 8 + 4 + 4 + 16);
    if (got) *got = 0;
    if (h != &handle) return NOT_INITIALIZED;
    if (!preference || preference->magic != PREFERENCE || wanted <= 0 || !results || !got) return INVALID_VALUE;
    count("api cublasLt heuristics");
    Problem p;
    if (int s = check(o, a, b, c, d, p, "cublasLtMatmulAlgoGetHeuristic")) return s;
    const uint64_t needs[] = {1 << 20, 0, 4 << 20};
    for (unsigned i = 0; i < 3 && *got < wanted; i++) {
        if (needs[i] > preference->workspace) continue;
        Result r{};
        r.algo = Algorithm{ALGORITHM, i, needs[i], *std::min_element(preference->alignment, preference->alignment + 4), p.kinds};
        r.workspace = needs[i];
        r.waves = 1.0f;
        results[(*got)++] = r;
    }
    return SUCCESS;
}
API int cublasLtMatmulAlgoCheck(void*, Operation* o, Layout* a, Layout* b, Layout* c, Layout* d, const Algorithm* algo, Result* result) {
    Problem p;
    if (int s = check(o, a, b, c, d, p, "cublasLtMatmulAlgoCheck")) return s;
    if (!algo || algo->magic != ALGORITHM || algo->kinds != p.kinds) return NOT_SUPPORTED;
    *result = Result{};
    result->algo = *algo;
    result->workspace = algo->workspace;
    return SUCCESS;
}
