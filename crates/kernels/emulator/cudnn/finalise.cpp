// What makes a descriptor final: its attributes are all there and fit together.
#include "backend.h"
#include <set>

namespace emu {
Number number_of(int64_t t) { return t == 0 ? Number::F32 : t == 2 ? Number::F16 : t == 9 ? Number::BF16 : Number::None; }
Tensor tensor_of(const Body& b) {
    auto d = b.list(902), s = b.list(903);
    Tensor t{};
    t.uid = b.value<int64_t>(906);
    t.n = d[0], t.c = d[1], t.h = d[2], t.w = d[3];
    for (int i = 0; i < 4; i++) t.strides[i] = s[(size_t)i];
    t.alignment = b.value<int64_t>(900);
    t.type = number_of(b.value<int32_t>(901));
    t.is_virtual = b.value<bool>(907);
    return t;
}
static int required(const Body& b, std::initializer_list<int> names) {
    for (int n : names)
        if (!b.has(n)) return refuse(BAD_PARAM, b, "attribute " + std::to_string(n) + " is not set");
    return SUCCESS;
}
static int tensor(const Body& b) {
    if (int s = required(b, {900, 901, 902, 903, 906})) return s;
    auto d = b.list(902), strides = b.list(903);
    if (d.size() != strides.size()) return refuse(BAD_PARAM, b, "there are not as many strides as dimensions");
    if (d.size() != 4) return refuse(NOT_SUPPORTED, b, "only tensors of 4 dimensions are emulated");
    for (size_t i = 0; i < 4; i++)
        if (d[i] <= 0 || strides[i] <= 0) return refuse(BAD_PARAM, b, "a dimension or a stride is not positive");
    if (number_of(b.value<int32_t>(901)) == Number::None) return refuse(UNSUPPORTED_TYPE, b, "only f32, bf16 and f16 are emulated");
    int64_t a = b.value<int64_t>(900);
    if (a <= 0 || (a & (a - 1))) return refuse(BAD_PARAM, b, "the alignment is not a power of two");
    return SUCCESS;
}
static int convolution(const Body& b) {
    if (int s = required(b, {100, 101, 102, 103, 104, 105, 106})) return s;
    int64_t n = b.value<int64_t>(106);
    for (int name : {102, 103, 104, 105})
        if ((int64_t)b.list(name).size() != n) return refuse(BAD_PARAM, b, "attribute " + std::to_string(name) + " has not one value for each spatial dimension");
    if (n != 2) return refuse(NOT_SUPPORTED, b, "only convolutions of 2 spatial dimensions are emulated");
    for (int64_t v : b.list(102))
        if (v != 1) return refuse(NOT_SUPPORTED, b, "dilations other than 1 are not emulated");
    for (int64_t v : b.list(103))
        if (v < 1) return refuse(BAD_PARAM, b, "a stride below 1");
    for (int name : {104, 105})
        for (int64_t v : b.list(name))
            if (v < 0) return refuse(BAD_PARAM, b, "a negative padding");
    if (b.value<int32_t>(100) != 0) return refuse(UNSUPPORTED_TYPE, b, "a convolution that computes in another type than f32");
    return SUCCESS;
}
static int operation(const Body& b, int first, int x_name, int w_name, int y_name) {
    if (int s = required(b, {first + 2, x_name, w_name, y_name})) return s; // alpha and beta have defaults
    Tensor x = tensor_of(*b.link(x_name)), w = tensor_of(*b.link(w_name)), y = tensor_of(*b.link(y_name));
    const Body& c = *b.link(first + 2);
    auto stride = c.list(103), after = c.list(104), before = c.list(105);
    if (x.n != y.n || w.n != y.c) return refuse(SHAPE_MISMATCH, b, "batch or output channels differ");
    if (x.c != w.c) return refuse(x.c % w.c ? SHAPE_MISMATCH : NOT_SUPPORTED, b, "input channels differ (groups are not emulated)");
    int64_t in[2] = {x.h, x.w}, kernel[2] = {w.h, w.w}, out[2] = {y.h, y.w};
    for (size_t i = 0; i < 2; i++) {
        int64_t room = in[i] + before[i] + after[i] - kernel[i];
        if (room < 0 || room / stride[i] + 1 != out[i]) return refuse(SHAPE_MISMATCH, b, "the output has not the size that paddings and strides give");
    }
    bool same = b.kind == FORWARD ? x.type == w.type : b.kind == BACKWARD_DATA ? y.type == w.type : x.type == y.type;
    if (!same) return refuse(UNSUPPORTED_TYPE, b, "the two tensors that are read have different types");
    return SUCCESS;
}
static int pointwise(const Body& b) {
    if (int s = required(b, {750, 751, 753})) return s;
    int mode = b.link(750)->value<int32_t>(0);
    bool two = mode == 0 || mode == 1 || mode == 2 || mode == 3 || mode == 9; // add, mul, min, max, sub
    bool one = mode == 21 || mode == 100 || mode == 102 || mode == 106;       // identity, relu, sigmoid, swish
    if (!two && !one) return refuse(NOT_SUPPORTED, b, "pointwise mode " + std::to_string(mode) + " is not emulated");
    if (two != b.has(752)) return refuse(BAD_PARAM, b, two ? "this mode takes B" : "this mode takes no B");
    Tensor y = tensor_of(*b.link(753));
    for (int name : {751, 752}) {
        if (!b.has(name)) continue;
        Tensor x = tensor_of(*b.link(name));
        int64_t from[4] = {x.n, x.c, x.h, x.w}, to[4] = {y.n, y.c, y.h, y.w};
        for (int i = 0; i < 4; i++)
            if (from[i] != to[i] && from[i] != 1) return refuse(SHAPE_MISMATCH, b, "an operand fits neither the result nor is repeated over it");
    }
    return SUCCESS;
}
static int graph(const Body& b) {
    if (int s = required(b, {800, 801})) return s;
    std::map<int64_t, const Body*> seen;
    std::set<int64_t> made;
    auto& operations = b.attributes.at(801).linked;
    for (size_t i = 0; i < operations.size(); i++) {
        const Body& o = *operations[i];
        if (o.kind != OPERATION_POINTWISE && i > 0) return refuse(UNSUPPORTED_PATTERN, b, "a convolution after another operation is not emulated");
        for (auto& [name, a] : o.attributes) {
            if (a.linked.empty() || a.linked[0]->kind != TENSOR) continue;
            Tensor t = tensor_of(*a.linked[0]);
            auto [at, fresh] = seen.emplace(t.uid, a.linked[0].get());
            if (!fresh && at->second != a.linked[0].get()) return refuse(BAD_PARAM, b, "two tensors have the unique id " + std::to_string(t.uid));
            bool result = name == 705 || name == 710 || name == 715 || name == 753;
            if (!result && t.is_virtual && !made.count(t.uid)) return refuse(BAD_PARAM, b, "a virtual tensor is read before an operation makes it");
        }
        for (int name : {705, 710, 715, 753})
            if (o.has(name) && !made.insert(tensor_of(*o.link(name)).uid).second) return refuse(BAD_PARAM, b, "two operations write the same tensor");
    }
    return SUCCESS;
}
static int pack(const Body& b) {
    if (int s = required(b, {1000, 1001})) return s;
    auto ids = b.list(1000);
    if (ids.size() != b.list(1001).size()) return refuse(BAD_PARAM, b, "there are not as many pointers as unique ids");
    if (std::set<int64_t>(ids.begin(), ids.end()).size() != ids.size()) return refuse(BAD_PARAM, b, "a unique id is there twice");
    return SUCCESS;
}
int finalise(Body& b) {
    if (b.final) return refuse(BAD_PARAM, b, "it is final already");
    switch (b.kind) {
    case TENSOR: return tensor(b);
    case CONVOLUTION: return convolution(b);
    case FORWARD: return operation(b, 700, 704, 703, 705);
    case BACKWARD_DATA: return operation(b, 706, 710, 709, 711);
    case BACKWARD_FILTER: return operation(b, 712, 716, 715, 717);
    case POINTWISE: return required(b, {0, 1});
    case OPERATION_POINTWISE: return pointwise(b);
    case GRAPH: return graph(b);
    case ENGINEHEUR: {
        int s = required(b, {200, 201});
        return s ? s : fault("heuristics");
    }
    case ENGINE: return required(b, {1300, 1301});
    case ENGINECFG: return required(b, {300});
    case PLAN: {
        int s = required(b, {400, 401});
        return s ? s : finalise_plan(b);
    }
    case VARIANT_PACK: return pack(b);
    default: return NOT_SUPPORTED;
    }
}
} // namespace emu
