// Creating, setting and reading cuBLASLt's descriptors, by attribute and exact size.
#include "descriptors.h"
#include <cstdlib>

namespace emu {
int refuse(Status s, const char* function, const char* why) {
    say("%s: %s (returns %d)", function, why, (int)s);
    return s;
}
struct Field {
    void* at;
    size_t size;
};
static Field field(Layout* l, int attribute) {
    switch (attribute) {
    case 0: return {&l->type, 4};
    case 1: return {&l->order, 4};
    case 2: return {&l->rows, 8};
    case 3: return {&l->columns, 8};
    case 4: return {&l->ld, 8};
    case 5: return {&l->batches, 4};
    case 6: return {&l->stride, 8};
    default: return {nullptr, 0};
    }
}
static Field field(Operation* o, int attribute) {
    switch (attribute) {
    case 0: return {&o->compute, 4};
    case 1: return {&o->scale, 4};
    case 2: return {&o->pointer_mode, 4};
    case 3: return {&o->transa, 4};
    case 4: return {&o->transb, 4};
    case 5: return {&o->transc, 4};
    case 6: return {&o->fill, 4};
    case 7: return {&o->epilogue, 4};
    case 8: return {&o->bias, 8};
    case 10: return {&o->bias_stride, 8};
    case 26: return {&o->bias_type, 4};
    default: return {nullptr, 0};
    }
}
static Field field(Preference* p, int attribute) {
    switch (attribute) {
    case 0: return {&p->mode, 4};
    case 1: return {&p->workspace, 8};
    case 3: return {&p->reductions, 4};
    case 5: case 6: case 7: case 8: return {&p->alignment[attribute - 5], 4};
    case 9: return {&p->waves, 4};
    default: return {nullptr, 0};
    }
}
template <class T> static int set(T* d, int magic, int attribute, const void* value, size_t size, const char* function) {
    if (!d || d->magic != magic) return refuse(INVALID_VALUE, function, "not such a descriptor");
    Field f = field(d, attribute);
    if (!f.at) return refuse(NOT_SUPPORTED, function, ("attribute " + std::to_string(attribute) + " is not emulated").c_str());
    if (!value || size != f.size) return refuse(INVALID_VALUE, function, ("attribute " + std::to_string(attribute) + " has " + std::to_string(f.size) + " bytes").c_str());
    memcpy(f.at, value, size);
    return SUCCESS;
}
template <class T> static int get(T* d, int magic, int attribute, void* value, size_t size, size_t* written, const char* function) {
    if (!d || d->magic != magic) return refuse(INVALID_VALUE, function, "not such a descriptor");
    Field f = field(d, attribute);
    if (!f.at) return refuse(NOT_SUPPORTED, function, "the attribute is not emulated");
    if (written) *written = f.size;
    if (size == 0 && written) return SUCCESS;
    if (!value || size != f.size) return refuse(INVALID_VALUE, function, "wrong size");
    memcpy(value, f.at, size);
    return SUCCESS;
}
static int init(Layout* l, size_t size, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    if (!l || size < sizeof *l) return INVALID_VALUE;
    *l = Layout{type, 0, rows, columns, ld, 1, LAYOUT, 0};
    return SUCCESS;
}
static int init(Operation* o, size_t size, int compute, int scale) {
    if (!o || size < sizeof *o) return INVALID_VALUE;
    *o = Operation{OPERATION, compute, scale, 0, 0, 0, 0, 0, 1, -1, nullptr, 0};
    return SUCCESS;
}
static int init(Preference* p, size_t size) {
    if (!p || size < sizeof *p) return INVALID_VALUE;
    *p = Preference{PREFERENCE, 0, 0, ~0u, {256, 256, 256, 256}, 0};
    return SUCCESS;
}
template <class T, class... A> static int create(T** d, size_t size, A... a) {
    *d = (T*)calloc(1, size);
    return init(*d, size, a...);
}
template <class T> static int destroy(T* d) {
    if (!d) return INVALID_VALUE;
    d->magic = 0;
    free(d);
    return SUCCESS;
}
} // namespace emu
using namespace emu;

API int cublasLtMatrixLayoutCreate(Layout** l, int type, uint64_t rows, uint64_t columns, int64_t ld) { return create(l, 112, type, rows, columns, ld); }
API int cublasLtMatrixLayoutInit_internal(Layout* l, size_t size, int type, uint64_t rows, uint64_t columns, int64_t ld) { return init(l, size, type, rows, columns, ld); }
API int cublasLtMatrixLayoutDestroy(Layout* l) { return destroy(l); }
API int cublasLtMatrixLayoutSetAttribute(Layout* l, int a, const void* v, size_t n) { return set(l, LAYOUT, a, v, n, "cublasLtMatrixLayoutSetAttribute"); }
API int cublasLtMatrixLayoutGetAttribute(Layout* l, int a, void* v, size_t n, size_t* w) { return get(l, LAYOUT, a, v, n, w, "cublasLtMatrixLayoutGetAttribute"); }
API int cublasLtMatmulDescCreate(Operation** o, int compute, int scale) { return create(o, 256, compute, scale); }
API int cublasLtMatmulDescInit_internal(Operation* o, size_t size, int compute, int scale) { return init(o, size, compute, scale); }
API int cublasLtMatmulDescDestroy(Operation* o) { return destroy(o); }
API int cublasLtMatmulDescSetAttribute(Operation* o, int a, const void* v, size_t n) { return set(o, OPERATION, a, v, n, "cublasLtMatmulDescSetAttribute"); }
API int cublasLtMatmulDescGetAttribute(Operation* o, int a, void* v, size_t n, size_t* w) { return get(o, OPERATION, a, v, n, w, "cublasLtMatmulDescGetAttribute"); }
API int cublasLtMatmulPreferenceCreate(Preference** p) { return create(p, 96); }
API int cublasLtMatmulPreferenceInit_internal(Preference* p, size_t size) { return init(p, size); }
API int cublasLtMatmulPreferenceDestroy(Preference* p) { return destroy(p); }
API int cublasLtMatmulPreferenceSetAttribute(Preference* p, int a, const void* v, size_t n) { return set(p, PREFERENCE, a, v, n, "cublasLtMatmulPreferenceSetAttribute"); }
API int cublasLtMatmulPreferenceGetAttribute(Preference* p, int a, void* v, size_t n, size_t* w) { return get(p, PREFERENCE, a, v, n, w, "cublasLtMatmulPreferenceGetAttribute"); }
