// cuDNN's convolutions against plain loops: channels last and first, paddings that differ, mixed types, fused sums.
#include "test.h"

struct Desc;
struct Dnn;
extern "C" {
int cudnnCreate(Dnn**);
int cudnnSetStream(Dnn*, CUstream);
int cudnnBackendCreateDescriptor(int, Desc**);
int cudnnBackendDestroyDescriptor(Desc*);
int cudnnBackendSetAttribute(Desc*, int, int, int64_t, const void*);
int cudnnBackendGetAttribute(Desc*, int, int, int64_t, int64_t*, void*);
int cudnnBackendFinalize(Desc*);
int cudnnBackendExecute(Dnn*, Desc*, Desc*);
}
static Dnn* dnn;
static Desc* create(int kind) {
    Desc* d = nullptr;
    OK(cudnnBackendCreateDescriptor(kind, &d));
    return d;
}
static Desc* final(Desc* d) { OK(cudnnBackendFinalize(d)); return d; }
static void set(Desc* d, int name, std::vector<int64_t> v) { OK(cudnnBackendSetAttribute(d, name, 3, (int64_t)v.size(), v.data())); }
static void set_enum(Desc* d, int name, int type, int v) { OK(cudnnBackendSetAttribute(d, name, type, 1, &v)); }
static void link(Desc* d, int name, std::vector<Desc*> v) { OK(cudnnBackendSetAttribute(d, name, 15, (int64_t)v.size(), v.data())); }

static unsigned short narrow(float f) { unsigned u; memcpy(&u, &f, 4); return (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16); }
static float wide(unsigned short b) { unsigned u = (unsigned)b << 16; float f; memcpy(&f, &u, 4); return f; }
struct Array { // N, C, H, W values in one of the two layouts
    std::vector<int64_t> d, s;
    int type;
    std::vector<float> v;
    CUdeviceptr p = 0;
    Array(std::vector<int64_t> d_, int type, bool last, unsigned seed) : d(d_), type(type) {
        s = last ? std::vector<int64_t>{d[1] * d[2] * d[3], 1, d[3] * d[1], d[1]} : std::vector<int64_t>{d[1] * d[2] * d[3], d[2] * d[3], d[3], 1};
        v = normal((size_t)(d[0] * d[1] * d[2] * d[3]), seed);
        if (type == 0) p = upload(v);
        else {
            std::vector<unsigned short> b;
            for (auto& x : v) b.push_back(narrow(x)), x = wide(b.back());
            p = upload(b);
        }
    }
    double at(int64_t n, int64_t c, int64_t h, int64_t w) const { return v[(size_t)(n * s[0] + c * s[1] + h * s[2] + w * s[3])]; }
    void read() {
        if (type == 0) v = download<float>(p, v.size());
        else {
            auto b = download<unsigned short>(p, v.size());
            for (size_t i = 0; i < b.size(); i++) v[i] = wide(b[i]);
        }
    }
    Desc* descriptor(int64_t uid, bool is_virtual = false) const {
        Desc* t = create(17);
        set_enum(t, 901, 1, is_virtual ? 0 : type);
        set(t, 902, d), set(t, 903, s), set(t, 906, {uid}), set(t, 900, {16});
        OK(cudnnBackendSetAttribute(t, 907, 2, 1, &is_virtual));
        return final(t);
    }
};
static Desc* convolution(int64_t stride, int64_t before, int64_t after) {
    Desc* c = create(1);
    set_enum(c, 100, 1, 0), set_enum(c, 101, 7, 1);
    set(c, 102, {1, 1}), set(c, 103, {stride, stride}), set(c, 104, {after, after}), set(c, 105, {before, before}), set(c, 106, {2});
    return final(c);
}
// The operation over (x, w, y), its first attribute being `first`, with places of conv, x, w, y.
static Desc* operation(int kind, int first, int x, int w, int y, Desc* c, Desc* dx, Desc* dw, Desc* dy) {
    Desc* o = create(kind);
    float one = 1, zero = 0;
    OK(cudnnBackendSetAttribute(o, first, 4, 1, &one));
    OK(cudnnBackendSetAttribute(o, first + 1, 4, 1, &zero));
    link(o, first + 2, {c}), link(o, x, {dx}), link(o, w, {dw}), link(o, y, {dy});
    return final(o);
}
static Desc* addition(Desc* x, Desc* b, Desc* y) {
    Desc *p = create(0), *o = create(13);
    set_enum(p, 0, 14, 0), set_enum(p, 1, 1, 0);
    link(o, 750, {final(p)}), link(o, 751, {x}), link(o, 752, {b}), link(o, 753, {y});
    return final(o);
}
static int run(std::vector<Desc*> operations, std::vector<int64_t> ids, std::vector<CUdeviceptr> pointers, int* plans = nullptr, int* nondeterministic = nullptr) {
    Desc *graph = create(15), *heuristics = create(4);
    OK(cudnnBackendSetAttribute(graph, 800, 0, 1, &dnn));
    link(graph, 801, operations);
    final(graph);
    link(heuristics, 201, {graph});
    set_enum(heuristics, 200, 8, 3);
    final(heuristics);
    std::vector<Desc*> configs;
    for (int i = 0; i < 64; i++) configs.push_back(create(3));
    int64_t n = 0;
    OK(cudnnBackendGetAttribute(heuristics, 202, 15, 64, &n, configs.data()));
    int done = 0;
    for (int64_t i = 0; i < n; i++) {
        Desc *engine = create(2), *plan = create(5);
        int64_t count, bytes;
        int notes[10];
        OK(cudnnBackendGetAttribute(configs[(size_t)i], 300, 15, 1, &count, &engine));
        OK(cudnnBackendGetAttribute(engine, 1303, 11, 10, &count, notes));
        for (int64_t j = 0; j < count; j++)
            if (nondeterministic && notes[j] == 4) ++*nondeterministic;
        OK(cudnnBackendSetAttribute(plan, 400, 0, 1, &dnn));
        link(plan, 401, {configs[(size_t)i]});
        if (cudnnBackendFinalize(plan)) continue;
        OK(cudnnBackendGetAttribute(plan, 402, 3, 1, &count, &bytes));
        CUdeviceptr workspace = 0;
        if (bytes) OK(cuMemAlloc(&workspace, (size_t)bytes));
        Desc* pack = create(16);
        set(pack, 1000, ids);
        OK(cudnnBackendSetAttribute(pack, 1001, 6, (int64_t)pointers.size(), pointers.data()));
        OK(cudnnBackendSetAttribute(pack, 1003, 6, 1, &workspace));
        OK(cudnnBackendExecute(dnn, plan, final(pack)));
        done++;
    }
    if (plans) *plans = done;
    return done;
}
static double difference(const Array& a, const std::function<double(int64_t, int64_t, int64_t, int64_t)>& expected) {
    double worst = 0;
    for (int64_t n = 0; n < a.d[0]; n++)
        for (int64_t c = 0; c < a.d[1]; c++)
            for (int64_t h = 0; h < a.d[2]; h++)
                for (int64_t w = 0; w < a.d[3]; w++) {
                    double e = expected(n, c, h, w);
                    worst = fmax(worst, fabs(a.at(n, c, h, w) - e) / (5 + fabs(e)));
                }
    return worst;
}
static void one(int type, bool last, int64_t k, int64_t stride, int64_t before, int64_t after) {
    const int64_t N = 2, C = 8, H = 9, W = 7, O = 16, oh = (H + before + after - k) / stride + 1, ow = (W + before + after - k) / stride + 1;
    Array x({N, C, H, W}, type, last, 1), w({O, C, k, k}, type, last, 2), y({N, O, oh, ow}, type, last, 3), bias({1, O, 1, 1}, type, last, 4),
        residual({N, O, oh, ow}, type, last, 5);
    double allowed = type ? 1.0 / 128 : 1e-5;
    const int ways = type ? 5 : 29; // proposals that become a plan; in f32 the first is there 24 times more
    auto inside = [&](int64_t h, int64_t v) { return h >= 0 && h < H && v >= 0 && v < W; };
    auto forward = [&](int64_t n, int64_t o, int64_t h, int64_t v) {
        double s = 0;
        for (int64_t r = 0; r < k; r++)
            for (int64_t q = 0; q < k; q++)
                if (int64_t iy = h * stride + r - before, ix = v * stride + q - before; inside(iy, ix))
                    for (int64_t c = 0; c < C; c++) s += x.at(n, c, iy, ix) * w.at(o, c, r, q);
        return s;
    };
    Desc* c = convolution(stride, before, after);
    Desc *dx = x.descriptor(1), *dw = w.descriptor(2), *dy = y.descriptor(3);
    int nondeterministic = 0;
    Array dy_values = y;
    CHECK(run({operation(10, 700, 704, 703, 705, c, dx, dw, dy)}, {1, 2, 3}, {x.p, w.p, y.p}, nullptr, &nondeterministic) == ways);
    CHECK(nondeterministic == 0);
    y.read();
    CHECK(difference(y, forward) < allowed);
    // y = conv + residual + bias, one graph
    Desc *v1 = y.descriptor(6, true), *v2 = y.descriptor(7, true);
    std::vector<Desc*> fused{operation(10, 700, 704, 703, 705, c, dx, dw, v1), addition(v1, residual.descriptor(5), v2), addition(v2, bias.descriptor(4), dy)};
    CHECK(run(fused, {1, 2, 3, 4, 5}, {x.p, w.p, y.p, bias.p, residual.p}) == ways);
    y.read();
    CHECK(difference(y, [&](int64_t n, int64_t o, int64_t h, int64_t v) { return forward(n, o, h, v) + residual.at(n, o, h, v) + bias.at(0, o, 0, 0); }) < allowed);
    setenv("GPU_EMULATOR_REFUSE_FUSION", "1", 1);
    CHECK(run(fused, {1, 2, 3, 4, 5}, {x.p, w.p, y.p, bias.p, residual.p}) == 0);
    unsetenv("GPU_EMULATOR_REFUSE_FUSION");
    // the gradients, of dy = what y held at first
    Array g = dy_values;
    g.p = Array(g.d, type, last, 3).p;
    Array gx({N, C, H, W}, type, last, 8), gw({O, C, k, k}, 0, last, 9);
    Desc* dg = g.descriptor(3);
    CHECK(run({operation(12, 706, 710, 709, 711, c, gx.descriptor(1), dw, dg)}, {1, 2, 3}, {gx.p, w.p, g.p}, nullptr, &nondeterministic) == ways);
    CHECK(nondeterministic == 1);
    gx.read();
    CHECK(difference(gx, [&](int64_t n, int64_t i, int64_t h, int64_t v) {
        double s = 0;
        for (int64_t r = 0; r < k; r++)
            for (int64_t q = 0; q < k; q++) {
                int64_t a = h + before - r, b = v + before - q;
                if (a < 0 || b < 0 || a % stride || b % stride || a / stride >= oh || b / stride >= ow) continue;
                for (int64_t o = 0; o < O; o++) s += g.at(n, o, a / stride, b / stride) * w.at(o, i, r, q);
            }
        return s;
    }) < allowed);
    Desc* filter = operation(11, 712, 716, 715, 717, c, dx, gw.descriptor(2), dg);
    CHECK(run({filter}, {1, 2, 3}, {x.p, gw.p, g.p}) == ways);
    gw.read();
    CHECK(difference(gw, [&](int64_t o, int64_t i, int64_t r, int64_t q) {
        double s = 0;
        for (int64_t n = 0; n < N; n++)
            for (int64_t h = 0; h < oh; h++)
                for (int64_t v = 0; v < ow; v++)
                    if (int64_t iy = h * stride + r - before, ix = v * stride + q - before; inside(iy, ix)) s += g.at(n, o, h, v) * x.at(n, i, iy, ix);
        return s;
    }) < 1e-5);
    setenv("GPU_EMULATOR_REFUSE_MIXED", "1", 1);
    CHECK(run({filter}, {1, 2, 3}, {x.p, gw.p, g.p}) == (type ? 0 : ways));
    unsetenv("GPU_EMULATOR_REFUSE_MIXED");
}
void test_convolutions() {
    OK(cudnnCreate(&dnn));
    for (int type : {0, 9})
        for (bool last : {true, false}) {
            one(type, last, 3, 1, 1, 1);
            one(type, last, 3, 2, 0, 1);
            one(type, last, 1, 1, 0, 0);
        }
    Desc* t = create(17);
    int wrong = 0;
    int64_t n = 4, two[2] = {1, 2};
    CHECK_CODE(cudnnBackendSetAttribute(t, 902, 1, 1, &wrong), 2000);
    CHECK_CODE(cudnnBackendSetAttribute(t, 906, 3, 2, two), 2000);
    CHECK_CODE(cudnnBackendSetAttribute(t, 700, 3, 1, &n), 2000);
    CHECK_CODE(cudnnBackendFinalize(t), 2000);
    Array x({1, 8, 4, 4}, 0, true, 1), w({8, 8, 3, 3}, 0, true, 2);
    Desc* o = create(10);
    link(o, 702, {convolution(1, 0, 0)}), link(o, 704, {x.descriptor(1)}), link(o, 703, {w.descriptor(2)}), link(o, 705, {x.descriptor(3)});
    CHECK_CODE(cudnnBackendFinalize(o), 2008);
}
