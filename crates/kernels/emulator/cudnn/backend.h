// cuDNN's backend descriptors: bags of attributes, checked against a table, and what the emulator makes of them.
#pragma once
#include "../emulator.h"
#include "../numbers.h"
#include <map>
#include <memory>

namespace emu {
enum Status : int {
    SUCCESS = 0, NOT_INITIALIZED = 1001, BAD_PARAM = 2000, NULL_POINTER = 2002, MISALIGNED = 2003, NOT_FINALIZED = 2004,
    SHAPE_MISMATCH = 2008, NOT_SUPPORTED = 3000, UNSUPPORTED_PATTERN = 3001, UNSUPPORTED_TYPE = 3003, EXECUTION_FAILED = 5000
};
enum Kind { POINTWISE = 0, CONVOLUTION = 1, ENGINE = 2, ENGINECFG = 3, ENGINEHEUR = 4, PLAN = 5, FORWARD = 10, BACKWARD_FILTER = 11,
            BACKWARD_DATA = 12, OPERATION_POINTWISE = 13, GRAPH = 15, VARIANT_PACK = 16, TENSOR = 17 };
enum Type { HANDLE = 0, DATA_TYPE = 1, BOOLEAN = 2, INT64 = 3, FLOAT = 4, DOUBLE = 5, VOID_PTR = 6, CONV_MODE = 7, HEUR_MODE = 8,
            NAN_PROPAGATION = 10, NUMERICAL_NOTE = 11, POINTWISE_MODE = 14, DESCRIPTOR = 15, BEHAVIOR_NOTE = 19, REORDERING = 20, INT32 = 23,
            REAL = 100 /* float or double */ };

struct Body;
using BodyPtr = std::shared_ptr<Body>;
struct Attribute {
    int type = 0;
    int64_t count = 0;
    std::vector<char> bytes;
    std::vector<BodyPtr> linked;
};
struct Body {
    int kind = 0;
    bool final = false;
    std::map<int, Attribute> attributes;
    bool has(int name) const { return attributes.count(name) != 0; }
    template <class T> T value(int name, T otherwise = T()) const {
        auto i = attributes.find(name);
        if (i == attributes.end()) return otherwise;
        T v;
        memcpy(&v, i->second.bytes.data(), sizeof v);
        return v;
    }
    double real(int name, double otherwise) const {
        if (!has(name)) return otherwise;
        return attributes.at(name).type == FLOAT ? value<float>(name) : value<double>(name);
    }
    std::vector<int64_t> list(int name) const {
        std::vector<int64_t> v;
        auto i = attributes.find(name);
        if (i == attributes.end()) return v;
        v.resize((size_t)i->second.count);
        memcpy(v.data(), i->second.bytes.data(), i->second.bytes.size());
        return v;
    }
    BodyPtr link(int name, size_t i = 0) const { return has(name) && attributes.at(name).linked.size() > i ? attributes.at(name).linked[i] : nullptr; }
    template <class T> void put(int name, int type, const std::vector<T>& values) {
        Attribute a{type, (int64_t)values.size(), {}, {}};
        a.bytes.assign((const char*)values.data(), (const char*)values.data() + values.size() * sizeof(T));
        attributes[name] = a;
    }
};
struct Descriptor {
    uint64_t magic;
    BodyPtr body;
};
struct Handle {
    CUstream stream = nullptr;
};

int refuse(Status s, const Body& body, const std::string& why);
int fault(const char* where);                               // the code that GPU_EMULATOR_CUDNN_FAULT has for this place, or 0
int fault_of_engine(const char* where, const Body& engine); // the same if it is the engine that is proposed first
bool shortens(const Body& engine);                          // whether it reads f32 as 16 bits
int finalise(Body& body);                                    // finalise.cpp
bool fill_results(const Body& body, int name, Attribute& a); // engines.cpp: attributes that the library computes
int finalise_plan(Body& plan);
int execute(Handle* h, const Body& plan, const Body& pack);  // execute.cpp

// A tensor of four dimensions, N, C, H, W, in memory.
struct Tensor {
    int64_t uid, n, c, h, w, strides[4], alignment;
    Number type;
    bool is_virtual;
    size_t elements() const { return (size_t)(n * c * h * w); }
};
Tensor tensor_of(const Body& body);
Number number_of(int64_t cudnn_type);
struct Geometry {
    int64_t stride[2], before[2], dilation[2];
    bool flipped;
};
// Values by N, H, W, C; weights by O, R, S, I.
void convolve(const Tensor& x, const Tensor& w, const Tensor& y, const Geometry& g, const float* from, const float* weight, float* to);
void convolve_backward_data(const Tensor& dx, const Tensor& w, const Tensor& dy, const Geometry& g, float* to, const float* weight, const float* from);
void convolve_backward_filter(const Tensor& x, const Tensor& dw, const Tensor& dy, const Geometry& g, const float* from, float* weight, const float* gradient);
} // namespace emu
