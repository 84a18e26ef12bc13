// As much of cuBLAS as candle calls: a handle bound to a stream, and strided batches of products.
#include "../emulator.h"
#include "../product.h"

namespace emu {
struct Handle {
    CUstream stream = nullptr;
};
static int gemm(Handle* h, int ta, int tb, int m, int n, int k, const float* alpha, char* A, int at, int lda, long long sa, char* B, int bt,
                int ldb, long long sb, const float* beta, char* C, int ct, int ldc, long long sc, int batches, const char* f) {
    if (!h) return NOT_INITIALIZED;
    Number a = cuda_number(at), b = cuda_number(bt), c = cuda_number(ct);
    if (a == Number::None || a != b || (c != a && c != Number::F32)) return say("%s: types that are not emulated", f), NOT_SUPPORTED;
    if (m < 0 || n < 0 || k < 0 || batches < 0 || lda < std::max(1, ta ? k : m) || ldb < std::max(1, tb ? n : k) || ldc < std::max(1, m))
        return say("%s: shapes and leading dimensions do not fit", f), INVALID_VALUE;
    float x = *alpha, y = *beta;
    Work run = [=]() -> CUresult {
        for (int i = 0; i < batches && !skip(); i++) {
            Matrix d{c, C + i * sc * (long long)size_of(c), (size_t)ldc, false};
            multiply({a, A + i * sa * (long long)size_of(a), (size_t)lda, ta != 0}, {b, B + i * sb * (long long)size_of(b), (size_t)ldb, tb != 0}, d, d,
                     (size_t)m, (size_t)n, (size_t)k, x, y);
        }
        return CUDA_SUCCESS;
    };
    return submit(h->stream, "kernel cublas", run) ? EXECUTION_FAILED : SUCCESS;
}
} // namespace emu
using namespace emu;

API int cublasCreate_v2(Handle** h) { *h = new Handle; return SUCCESS; }
API int cublasDestroy_v2(Handle* h) { delete h; return SUCCESS; }
API int cublasSetStream_v2(Handle* h, CUstream s) { return h && valid_stream(s) ? h->stream = s, SUCCESS : INVALID_VALUE; }
API int cublasGetStream_v2(Handle* h, CUstream* s) { return *s = h->stream, SUCCESS; }
API int cublasSetWorkspace_v2(Handle*, void*, size_t) { return SUCCESS; }
API int cublasSetMathMode(Handle*, int) { return SUCCESS; }
API int cublasSetPointerMode_v2(Handle*, int mode) { return mode == 0 ? SUCCESS : NOT_SUPPORTED; }
API int cublasGetVersion_v2(Handle*, int* v) { *v = 130100; return SUCCESS; }
API const char* cublasGetStatusName(int s) { return s == 0 ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS"; }
API const char* cublasGetStatusString(int s) { return cublasGetStatusName(s); }
API int cublasGemmStridedBatchedEx(Handle* h, int ta, int tb, int m, int n, int k, const float* alpha, void* A, int at, int lda, long long sa,
                                   void* B, int bt, int ldb, long long sb, const float* beta, void* C, int ct, int ldc, long long sc,
                                   int batches, int compute, int) {
    if (compute == 64) return (int)unknown("cublasGemmStridedBatchedEx in f16", NOT_SUPPORTED);
    return gemm(h, ta, tb, m, n, k, alpha, (char*)A, at, lda, sa, (char*)B, bt, ldb, sb, beta, (char*)C, ct, ldc, sc, batches, "cublasGemmStridedBatchedEx");
}
API int cublasGemmEx(Handle* h, int ta, int tb, int m, int n, int k, const float* alpha, void* A, int at, int lda, void* B, int bt, int ldb,
                     const float* beta, void* C, int ct, int ldc, int compute, int) {
    if (compute == 64) return (int)unknown("cublasGemmEx in f16", NOT_SUPPORTED);
    return gemm(h, ta, tb, m, n, k, alpha, (char*)A, at, lda, 0, (char*)B, bt, ldb, 0, beta, (char*)C, ct, ldc, 0, 1, "cublasGemmEx");
}
API int cublasSgemmStridedBatched(Handle* h, int ta, int tb, int m, int n, int k, const float* alpha, void* A, int lda, long long sa, void* B,
                                  int ldb, long long sb, const float* beta, void* C, int ldc, long long sc, int batches) {
    return gemm(h, ta, tb, m, n, k, alpha, (char*)A, 0, lda, sa, (char*)B, 0, ldb, sb, beta, (char*)C, 0, ldc, sc, batches, "cublasSgemmStridedBatched");
}
