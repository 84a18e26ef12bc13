// Running a plan: tensors are read as f32 by N, H, W, C, operations follow each other, results are rounded once.
#include "backend.h"

namespace emu {
struct Operand {
    Tensor t;
    char* data = nullptr;
};
using Operands = std::map<int64_t, Operand>;
using Values = std::map<int64_t, std::vector<float>>;

template <class F> static void each(const Tensor& t, F f) { // f(place in the packed values, place in memory)
    size_t i = 0;
    for (int64_t n = 0; n < t.n; n++)
        for (int64_t h = 0; h < t.h; h++)
            for (int64_t w = 0; w < t.w; w++)
                for (int64_t c = 0; c < t.c; c++)
                    f(i++, (size_t)(n * t.strides[0] + c * t.strides[1] + h * t.strides[2] + w * t.strides[3]));
}
static const std::vector<float>& load(const Operands& operands, Values& values, const Tensor& t) {
    auto& v = values[t.uid];
    if (!v.empty()) return v; // what an operation before made
    v.resize(t.elements());
    const char* data = operands.at(t.uid).data;
    each(t, [&](size_t i, size_t at) { v[i] = read(t.type, data, at); });
    return v;
}
static void shorten(const Body& o, const Operands& operands, Values& values) { // what the operation reads, to 16 bits
    for (auto& [name, a] : o.attributes)
        if (!a.linked.empty() && a.linked[0]->kind == TENSOR && name != 705 && name != 710 && name != 715 && name != 753) {
            Tensor t = tensor_of(*a.linked[0]);
            load(operands, values, t);
            for (float& v : values[t.uid]) v = round_to(Number::F16, v);
        }
}
static void store(const Operands& operands, Values& values, const Tensor& t, std::vector<float> v, double alpha, double beta) {
    char* data = t.is_virtual ? nullptr : operands.at(t.uid).data;
    each(t, [&](size_t i, size_t at) {
        float x = (float)alpha * v[i];
        if (beta != 0 && data) x += (float)beta * read(t.type, data, at);
        v[i] = round_to(t.type, x);
        if (data) write(t.type, data, at, x);
    });
    values[t.uid] = std::move(v);
}
static void run_convolution(const Body& o, int first, int x_name, int w_name, int y_name, const Operands& operands, Values& values) {
    Tensor x = tensor_of(*o.link(x_name)), w = tensor_of(*o.link(w_name)), y = tensor_of(*o.link(y_name));
    const Body& c = *o.link(first + 2);
    auto stride = c.list(103), before = c.list(105), dilation = c.list(102);
    Geometry g{{stride[0], stride[1]}, {before[0], before[1]}, {dilation[0], dilation[1]}, c.value<int32_t>(101) == 0};
    const Tensor& result = o.kind == FORWARD ? y : o.kind == BACKWARD_DATA ? x : w;
    std::vector<float> to(result.elements());
    if (o.kind == FORWARD) convolve(x, w, y, g, load(operands, values, x).data(), load(operands, values, w).data(), to.data());
    else if (o.kind == BACKWARD_DATA) convolve_backward_data(x, w, y, g, to.data(), load(operands, values, w).data(), load(operands, values, y).data());
    else convolve_backward_filter(x, w, y, g, load(operands, values, x).data(), to.data(), load(operands, values, y).data());
    store(operands, values, result, std::move(to), o.real(first, 1), o.real(first + 1, 0));
}
static float apply(int mode, float a, float b, const Body& p) {
    switch (mode) {
    case 0: return a + b;
    case 1: return a * b;
    case 2: return fminf(a, b);
    case 3: return fmaxf(a, b);
    case 9: return a - b;
    case 100: return fmaxf(a, (float)p.real(3, 0));
    case 102: return 1 / (1 + expf(-a));
    case 106: return a / (1 + expf(-(float)p.real(8, 1) * a));
    default: return a;
    }
}
static void run_pointwise(const Body& o, const Operands& operands, Values& values) {
    const Body& p = *o.link(750);
    Tensor x = tensor_of(*o.link(751)), y = tensor_of(*o.link(753)), b = o.has(752) ? tensor_of(*o.link(752)) : x;
    std::vector<float> left = load(operands, values, x), right = load(operands, values, b), to(y.elements());
    float alpha1 = (float)o.real(754, 1), alpha2 = (float)o.real(755, 1);
    auto at = [](const Tensor& t, int64_t n, int64_t h, int64_t w, int64_t c) {
        return (size_t)(((t.n == 1 ? 0 : n) * t.h + (t.h == 1 ? 0 : h)) * t.w + (t.w == 1 ? 0 : w)) * (size_t)t.c + (size_t)(t.c == 1 ? 0 : c);
    };
    size_t i = 0;
    int mode = p.value<int32_t>(0);
    for (int64_t n = 0; n < y.n; n++)
        for (int64_t h = 0; h < y.h; h++)
            for (int64_t w = 0; w < y.w; w++)
                for (int64_t c = 0; c < y.c; c++)
                    to[i++] = apply(mode, alpha1 * left[at(x, n, h, w, c)], alpha2 * right[at(b, n, h, w, c)], p);
    store(operands, values, y, std::move(to), 1, 0);
}
static int bind_tensors(const Body& graph, const Body& pack, Operands& operands) {
    auto ids = pack.list(1000), pointers = pack.list(1001);
    std::map<int64_t, char*> given;
    for (size_t i = 0; i < ids.size(); i++) given[ids[i]] = (char*)pointers[i];
    for (auto& o : graph.attributes.at(801).linked)
        for (auto& [name, a] : o->attributes) {
            if (a.linked.empty() || a.linked[0]->kind != TENSOR) continue;
            Tensor t = tensor_of(*a.linked[0]);
            if (t.is_virtual) continue;
            auto at = given.find(t.uid);
            std::string who = "the tensor with unique id " + std::to_string(t.uid);
            if (at == given.end() || !at->second) return refuse(BAD_PARAM, pack, who + " has no pointer");
            if ((uintptr_t)at->second % (uintptr_t)std::min<int64_t>(t.alignment, 16)) return refuse(MISALIGNED, pack, who + " is less aligned than its descriptor says");
            size_t span = size_of(t.type) * (size_t)(1 + (t.n - 1) * t.strides[0] + (t.c - 1) * t.strides[1] + (t.h - 1) * t.strides[2] + (t.w - 1) * t.strides[3]);
            if (!device_range((CUdeviceptr)at->second, span)) return refuse(EXECUTION_FAILED, pack, who + " is not (all) device memory");
            operands[t.uid] = {t, at->second};
        }
    return SUCCESS;
}
int execute(Handle* h, const Body& plan, const Body& pack) {
    BodyPtr engine = plan.link(401)->link(300), graph = engine->link(1300);
    if (int code = fault_of_engine("execute", *engine)) return code;
    bool shortened = shortens(*engine);
    Operands operands;
    if (int s = bind_tensors(*graph, pack, operands)) return s;
    Attribute a;
    fill_results(plan, 402, a);
    int64_t bytes;
    memcpy(&bytes, a.bytes.data(), sizeof bytes);
    auto workspace = (CUdeviceptr)pack.value<void*>(1003);
    if (bytes && (!workspace || !device_range(workspace, (size_t)bytes))) return refuse(BAD_PARAM, pack, "the workspace is smaller than the plan needs");
    auto run = [=]() -> CUresult {
        if (skip()) return CUDA_SUCCESS;
        if (bytes) memset((void*)workspace, 0xff, (size_t)bytes);
        Values values;
        for (auto& o : graph->attributes.at(801).linked) {
            if (shortened) shorten(*o, operands, values);
            if (o->kind == FORWARD) run_convolution(*o, 700, 704, 703, 705, operands, values);
            else if (o->kind == BACKWARD_DATA) run_convolution(*o, 706, 710, 709, 711, operands, values);
            else if (o->kind == BACKWARD_FILTER) run_convolution(*o, 712, 716, 715, 717, operands, values);
            else run_pointwise(*o, operands, values);
        }
        return CUDA_SUCCESS;
    };
    int kind = graph->link(801)->kind;
    const char* name = kind == FORWARD ? "kernel cudnn forward" : kind == BACKWARD_DATA ? "kernel cudnn backward data"
                       : kind == BACKWARD_FILTER ? "kernel cudnn backward filter" : "kernel cudnn pointwise";
    return submit(h->stream, name, run) ? EXECUTION_FAILED : SUCCESS;
}
} // namespace emu
