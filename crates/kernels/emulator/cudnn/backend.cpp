// Creating, setting and reading descriptors: each attribute has its type and its number of values.
#include "backend.h"
#include <set>

namespace emu {
struct Rule {
    int kind, name, type;
    int64_t most;
    int linked = -1; // the kind of descriptor it holds; -2: an operation
    bool computed = false;
};
static const Rule RULES[] = {
    {POINTWISE, 0, POINTWISE_MODE, 1}, {POINTWISE, 1, DATA_TYPE, 1}, {POINTWISE, 2, NAN_PROPAGATION, 1}, {POINTWISE, 3, REAL, 1},
    {POINTWISE, 4, REAL, 1}, {POINTWISE, 5, REAL, 1}, {POINTWISE, 8, REAL, 1},
    {CONVOLUTION, 100, DATA_TYPE, 1}, {CONVOLUTION, 101, CONV_MODE, 1}, {CONVOLUTION, 102, INT64, 3}, {CONVOLUTION, 103, INT64, 3},
    {CONVOLUTION, 104, INT64, 3}, {CONVOLUTION, 105, INT64, 3}, {CONVOLUTION, 106, INT64, 1},
    {ENGINEHEUR, 200, HEUR_MODE, 1}, {ENGINEHEUR, 201, DESCRIPTOR, 1, GRAPH}, {ENGINEHEUR, 202, DESCRIPTOR, 64, ENGINECFG, true},
    {ENGINEHEUR, 203, INT32, 1},
    {ENGINECFG, 300, DESCRIPTOR, 1, ENGINE}, {ENGINECFG, 303, INT64, 1, -1, true}, {ENGINECFG, 304, INT64, 1, -1, true},
    {PLAN, 400, HANDLE, 1}, {PLAN, 401, DESCRIPTOR, 1, ENGINECFG}, {PLAN, 402, INT64, 1, -1, true},
    {FORWARD, 700, REAL, 1}, {FORWARD, 701, REAL, 1}, {FORWARD, 702, DESCRIPTOR, 1, CONVOLUTION}, {FORWARD, 703, DESCRIPTOR, 1, TENSOR},
    {FORWARD, 704, DESCRIPTOR, 1, TENSOR}, {FORWARD, 705, DESCRIPTOR, 1, TENSOR},
    {BACKWARD_DATA, 706, REAL, 1}, {BACKWARD_DATA, 707, REAL, 1}, {BACKWARD_DATA, 708, DESCRIPTOR, 1, CONVOLUTION},
    {BACKWARD_DATA, 709, DESCRIPTOR, 1, TENSOR}, {BACKWARD_DATA, 710, DESCRIPTOR, 1, TENSOR}, {BACKWARD_DATA, 711, DESCRIPTOR, 1, TENSOR},
    {BACKWARD_FILTER, 712, REAL, 1}, {BACKWARD_FILTER, 713, REAL, 1}, {BACKWARD_FILTER, 714, DESCRIPTOR, 1, CONVOLUTION},
    {BACKWARD_FILTER, 715, DESCRIPTOR, 1, TENSOR}, {BACKWARD_FILTER, 716, DESCRIPTOR, 1, TENSOR}, {BACKWARD_FILTER, 717, DESCRIPTOR, 1, TENSOR},
    {OPERATION_POINTWISE, 750, DESCRIPTOR, 1, POINTWISE}, {OPERATION_POINTWISE, 751, DESCRIPTOR, 1, TENSOR},
    {OPERATION_POINTWISE, 752, DESCRIPTOR, 1, TENSOR}, {OPERATION_POINTWISE, 753, DESCRIPTOR, 1, TENSOR},
    {OPERATION_POINTWISE, 754, REAL, 1}, {OPERATION_POINTWISE, 755, REAL, 1},
    {GRAPH, 800, HANDLE, 1}, {GRAPH, 801, DESCRIPTOR, 64, -2}, {GRAPH, 802, INT64, 1, -1, true},
    {TENSOR, 900, INT64, 1}, {TENSOR, 901, DATA_TYPE, 1}, {TENSOR, 902, INT64, 8}, {TENSOR, 903, INT64, 8}, {TENSOR, 906, INT64, 1},
    {TENSOR, 907, BOOLEAN, 1}, {TENSOR, 909, REORDERING, 1},
    {VARIANT_PACK, 1000, INT64, 64}, {VARIANT_PACK, 1001, VOID_PTR, 64}, {VARIANT_PACK, 1003, VOID_PTR, 1},
    {ENGINE, 1300, DESCRIPTOR, 1, GRAPH}, {ENGINE, 1301, INT64, 1}, {ENGINE, 1303, NUMERICAL_NOTE, 10, -1, true},
    {ENGINE, 1305, BEHAVIOR_NOTE, 5, -1, true},
};
static size_t size_of_type(int type) {
    switch (type) {
    case HANDLE: case INT64: case DOUBLE: case VOID_PTR: case DESCRIPTOR: return 8;
    case BOOLEAN: return 1;
    default: return 4;
    }
}
int refuse(Status s, const Body& body, const std::string& why) {
    say("cudnn, descriptor of kind %d: %s (returns %d)", body.kind, why.c_str(), (int)s);
    return s;
}
static const Rule* rule(int kind, int name) {
    for (auto& r : RULES)
        if (r.kind == kind && r.name == name) return &r;
    return nullptr;
}
static std::set<Descriptor*>& alive() {
    static auto* s = new std::set<Descriptor*>;
    return *s;
}
static Body* body_of(Descriptor* d) {
    if (alive().count(d)) return d->body.get();
    say("cudnn: a descriptor that was not created, or was destroyed");
    return nullptr;
}
static std::string number(int name) { return "attribute " + std::to_string(name); }
static int check(const Body& b, const Rule* r, int name, int type, int64_t count) {
    if (!r) return refuse(BAD_PARAM, b, number(name) + " does not belong to it, or is not emulated");
    bool fits = r->type == REAL ? type == FLOAT || type == DOUBLE : r->type == type;
    if (!fits) return refuse(BAD_PARAM, b, number(name) + " has type " + std::to_string(r->type) + ", not " + std::to_string(type));
    if (count < 0 || count > r->most) return refuse(BAD_PARAM, b, number(name) + " has at most " + std::to_string(r->most) + " values, not " + std::to_string(count));
    return SUCCESS;
}
static int set(Body& b, int name, int type, int64_t count, const void* values) {
    if (b.final) return refuse(BAD_PARAM, b, number(name) + " is set after the descriptor was finalised");
    auto* r = rule(b.kind, name);
    if (int s = check(b, r, name, type, count)) return s;
    if (r->computed) return refuse(BAD_PARAM, b, number(name) + " can only be read");
    if (count == 0 || !values) return refuse(BAD_PARAM, b, number(name) + " is set to nothing");
    Attribute a{type, count, {}, {}};
    if (type == DESCRIPTOR) {
        for (int64_t i = 0; i < count; i++) {
            Body* other = body_of(((Descriptor* const*)values)[i]);
            if (!other) return BAD_PARAM;
            bool operation = other->kind >= FORWARD && other->kind <= OPERATION_POINTWISE;
            if (r->linked == -2 ? !operation : other->kind != r->linked)
                return refuse(BAD_PARAM, b, number(name) + " is set to a descriptor of kind " + std::to_string(other->kind));
            if (!other->final) return refuse(NOT_FINALIZED, b, number(name) + " is set to a descriptor that is not final");
            a.linked.push_back(((Descriptor* const*)values)[i]->body);
        }
    } else {
        a.bytes.assign((const char*)values, (const char*)values + (size_t)count * size_of_type(type));
    }
    b.attributes[name] = a;
    return SUCCESS;
}
static int get(Body& b, int name, int type, int64_t wanted, int64_t* count, void* values) {
    auto* r = rule(b.kind, name);
    if (!b.final) return refuse(NOT_FINALIZED, b, number(name) + " is read before the descriptor is final");
    if (int s = check(b, r, name, type, 0)) return s;
    if (wanted < 0) return refuse(BAD_PARAM, b, "a negative number of values is wanted");
    Attribute a;
    if (r->computed) fill_results(b, name, a);
    else if (b.has(name)) a = b.attributes[name];
    else return refuse(BAD_PARAM, b, number(name) + " was never set");
    if (a.type != type && !(r->type == REAL)) return refuse(BAD_PARAM, b, number(name) + " has another type");
    int64_t n = wanted == 0 ? a.count : std::min(wanted, a.count);
    if (count) *count = n;
    if (wanted == 0 || n == 0) return SUCCESS;
    if (!values) return refuse(NULL_POINTER, b, number(name) + ": no room for the values");
    if (type != DESCRIPTOR) {
        memcpy(values, a.bytes.data(), (size_t)n * size_of_type(type));
        return SUCCESS;
    }
    for (int64_t i = 0; i < n; i++) { // the caller's descriptors become what is asked for
        Body* other = body_of(((Descriptor**)values)[i]);
        if (!other || other->kind != r->linked) return refuse(BAD_PARAM, b, number(name) + " is read into a descriptor of another kind");
        ((Descriptor**)values)[i]->body = a.linked[(size_t)i];
    }
    return SUCCESS;
}
static std::set<Handle*>& handles() {
    static auto* s = new std::set<Handle*>;
    return *s;
}
} // namespace emu
using namespace emu;

API int cudnnBackendCreateDescriptor(int kind, Descriptor** d) {
    Lock lock;
    if (!d) return NULL_POINTER;
    bool known = false;
    for (auto& r : RULES) known |= r.kind == kind;
    if (!known) return unknown(("a cudnn descriptor of kind " + std::to_string(kind)).c_str(), NOT_SUPPORTED);
    *d = new Descriptor{0, std::make_shared<Body>()};
    (*d)->body->kind = kind;
    alive().insert(*d);
    return SUCCESS;
}
API int cudnnBackendDestroyDescriptor(Descriptor* d) {
    Lock lock;
    if (!alive().erase(d)) return BAD_PARAM;
    delete d;
    return SUCCESS;
}
API int cudnnBackendInitialize(Descriptor* d) { Lock lock; return body_of(d) ? SUCCESS : BAD_PARAM; }
API int cudnnBackendSetAttribute(Descriptor* d, int name, int type, int64_t count, const void* values) {
    Lock lock;
    Body* b = body_of(d);
    return b ? set(*b, name, type, count, values) : BAD_PARAM;
}
API int cudnnBackendGetAttribute(Descriptor* d, int name, int type, int64_t wanted, int64_t* count, void* values) {
    Lock lock;
    Body* b = body_of(d);
    return b ? get(*b, name, type, wanted, count, values) : BAD_PARAM;
}
API int cudnnBackendFinalize(Descriptor* d) {
    Lock lock;
    Body* b = body_of(d);
    if (!b) return BAD_PARAM;
    int s = finalise(*b);
    b->final = s == SUCCESS;
    return s;
}
API int cudnnBackendExecute(Handle* h, Descriptor* plan, Descriptor* pack) {
    Lock lock;
    Body *p = body_of(plan), *v = body_of(pack);
    if (!handles().count(h)) return NOT_INITIALIZED;
    if (!p || !v || p->kind != PLAN || v->kind != VARIANT_PACK) return BAD_PARAM;
    if (!p->final || !v->final) return refuse(NOT_FINALIZED, *p, "the plan or the pack of an execution is not final");
    return execute(h, *p, *v);
}
API int cudnnCreate(Handle** h) { Lock lock; handles().insert(*h = new Handle); return SUCCESS; }
API int cudnnDestroy(Handle* h) {
    Lock lock;
    if (!handles().erase(h)) return NOT_INITIALIZED;
    delete h;
    return SUCCESS;
}
API int cudnnSetStream(Handle* h, CUstream s) {
    Lock lock;
    if (!handles().count(h)) return NOT_INITIALIZED;
    if (!valid_stream(s)) return BAD_PARAM;
    h->stream = s;
    return SUCCESS;
}
API int cudnnGetStream(Handle* h, CUstream* s) { *s = h->stream; return SUCCESS; }
API size_t cudnnGetVersion() { return 91900; }
API size_t cudnnGetCudartVersion() { return 13000; }
API int cudnnGraphVersionCheck() { return SUCCESS; }
API const char* cudnnGetErrorString(int s) {
    switch (s) {
    case SUCCESS: return "CUDNN_STATUS_SUCCESS";
    case NOT_INITIALIZED: return "CUDNN_STATUS_NOT_INITIALIZED";
    case NOT_FINALIZED: return "CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED";
    case SHAPE_MISMATCH: return "CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH";
    case MISALIGNED: return "CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER";
    default: return s / 1000 == 2 ? "CUDNN_STATUS_BAD_PARAM" : s / 1000 == 3 ? "CUDNN_STATUS_NOT_SUPPORTED"
                    : s / 1000 == 4 ? "CUDNN_STATUS_INTERNAL_ERROR" : "CUDNN_STATUS_EXECUTION_FAILED";
    }
}
API void cudnnGetLastErrorString(char* text, size_t size) { if (size) text[0] = 0; }
