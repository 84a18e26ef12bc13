// Convolutions and their gradients over packed f32 values, with the channels innermost: plain loops that the compiler
// turns into vector instructions.
#include "backend.h"

namespace emu {
// Calls f(n, oy, ox, r, s, y, x) for each output pixel and each tap that lies inside the input.
template <class F> static void taps(const Tensor& x, const Tensor& w, const Tensor& y, const Geometry& g, int64_t n, F f) {
    for (int64_t oy = 0; oy < y.h; oy++)
        for (int64_t ox = 0; ox < y.w; ox++)
            for (int64_t r = 0; r < w.h; r++) {
                int64_t iy = oy * g.stride[0] + r - g.before[0];
                if (iy < 0 || iy >= x.h) continue;
                for (int64_t s = 0; s < w.w; s++) {
                    int64_t ix = ox * g.stride[1] + s - g.before[1];
                    if (ix < 0 || ix >= x.w) continue;
                    int64_t tap = g.flipped ? (w.h - 1 - r) * w.w + w.w - 1 - s : r * w.w + s;
                    f((n * y.h + oy) * y.w + ox, tap, (n * x.h + iy) * x.w + ix);
                }
            }
}
void convolve(const Tensor& x, const Tensor& w, const Tensor& y, const Geometry& g, const float* from, const float* weight, float* to) {
    size_t out = (size_t)w.n, in = (size_t)w.c, all = (size_t)(w.h * w.w);
    std::vector<float> turned(all * in * out); // [tap][in][out]
    for (size_t o = 0; o < out; o++)
        for (size_t t = 0; t < all; t++)
            for (size_t i = 0; i < in; i++) turned[(t * in + i) * out + o] = weight[(o * all + t) * in + i];
    for (int64_t n = 0; n < x.n; n++)
        taps(x, w, y, g, n, [&](int64_t pixel, int64_t tap, int64_t source) {
            float* __restrict sum = to + (size_t)pixel * out;
            const float* v = from + (size_t)source * in;
            for (size_t i = 0; i < in; i++) {
                const float* __restrict row = &turned[((size_t)tap * in + i) * out];
                float a = v[i];
                for (size_t o = 0; o < out; o++) sum[o] += a * row[o];
            }
        });
}
void convolve_backward_data(const Tensor& dx, const Tensor& w, const Tensor& dy, const Geometry& g, float* to, const float* weight, const float* from) {
    size_t out = (size_t)w.n, in = (size_t)w.c, all = (size_t)(w.h * w.w);
    for (int64_t n = 0; n < dx.n; n++)
        taps(dx, w, dy, g, n, [&](int64_t pixel, int64_t tap, int64_t source) {
            float* __restrict sum = to + (size_t)source * in;
            const float* v = from + (size_t)pixel * out;
            for (size_t o = 0; o < out; o++) {
                const float* __restrict row = weight + (o * all + (size_t)tap) * in;
                float a = v[o];
                for (size_t i = 0; i < in; i++) sum[i] += a * row[i];
            }
        });
}
void convolve_backward_filter(const Tensor& x, const Tensor& dw, const Tensor& dy, const Geometry& g, const float* from, float* weight, const float* gradient) {
    size_t out = (size_t)dw.n, in = (size_t)dw.c, all = (size_t)(dw.h * dw.w);
    std::vector<double> total(out * all * in); // over the images, whose sums are f32
    std::vector<float> sums(total.size());
    for (int64_t n = 0; n < x.n; n++) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        taps(x, dw, dy, g, n, [&](int64_t pixel, int64_t tap, int64_t source) {
            const float* __restrict v = from + (size_t)source * in;
            const float* d = gradient + (size_t)pixel * out;
            for (size_t o = 0; o < out; o++) {
                float* __restrict sum = &sums[(o * all + (size_t)tap) * in];
                float a = d[o];
                for (size_t i = 0; i < in; i++) sum[i] += a * v[i];
            }
        });
        for (size_t i = 0; i < total.size(); i++) total[i] += sums[i];
    }
    for (size_t i = 0; i < total.size(); i++) weight[i] = (float)total[i];
}
} // namespace emu
