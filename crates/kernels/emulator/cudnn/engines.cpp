// The engines that the emulated heuristics propose. All but one compute the same; their notes and workspaces differ. As with the
// real library one is always refused when a plan is made of it, in f32 the first of all use tensor cores, and there are notes that
// a program may not know yet. The one that shortens f32 to 16 bits is the emulator's own.
#include "backend.h"
#include <cstring>

namespace emu {
enum Note { TENSOR_CORE = 0, DOWN_CONVERT = 1, NONDETERMINISTIC = 4, WINOGRAD = 5, FROM_THE_FUTURE = 77 };
struct Engine {
    int64_t id, workspace;
    bool tensor_core, nondeterministic, refused, shortens;
};
static const Engine FIRST = {57, 1 << 20, true, false, false, false};
static const Engine ENGINES[] = {{34, 4 << 20, true, false, true, false}, FIRST, {11, 0, true, true, false, false},
                                 {70, 0, false, false, false, true}, {21, 0, false, false, false, false}, {0, 0, false, false, false, false}};
static const int REPEATED_IN_F32 = 24; // cuDNN 9.19 on an H100: 27 or 28 configurations of tensor cores before the first other one

static const Engine* engine_of(const Body& body) {
    for (auto& e : ENGINES)
        if (e.id == body.value<int64_t>(1301)) return &e;
    return nullptr;
}
static const Body& first_operation(const Body& graph) { return *graph.link(801); }
static bool is_backward(const Body& graph) {
    int k = first_operation(graph).kind;
    return k == BACKWARD_DATA || k == BACKWARD_FILTER;
}
static bool in_f32(const Body& graph) {
    const Body& o = first_operation(graph);
    int read = o.kind == FORWARD ? 704 : o.kind == BACKWARD_DATA ? 711 : o.kind == BACKWARD_FILTER ? 717 : 751;
    return tensor_of(*o.link(read)).type == Number::F32;
}
static BodyPtr configuration(const BodyPtr& graph, const Engine& e) {
    auto engine = std::make_shared<Body>(), config = std::make_shared<Body>();
    engine->kind = ENGINE;
    engine->attributes[1300] = Attribute{DESCRIPTOR, 1, {}, {graph}};
    engine->put<int64_t>(1301, INT64, {e.id});
    config->kind = ENGINECFG;
    config->attributes[300] = Attribute{DESCRIPTOR, 1, {}, {engine}};
    engine->final = config->final = true;
    return config;
}
bool shortens(const Body& engine) {
    auto* e = engine_of(engine);
    return e && e->shortens && in_f32(*engine.link(1300));
}
int fault(const char* where) { // GPU_EMULATOR_CUDNN_FAULT=WHERE:CODE
    const char* asked = getenv("GPU_EMULATOR_CUDNN_FAULT");
    size_t n = strlen(where);
    return asked && strncmp(asked, where, n) == 0 && asked[n] == ':' ? atoi(asked + n + 1) : SUCCESS;
}
int fault_of_engine(const char* where, const Body& engine) { return engine.value<int64_t>(1301) == FIRST.id ? fault(where) : SUCCESS; }
bool fill_results(const Body& b, int name, Attribute& a) {
    auto numbers = [&](int type, const std::vector<int64_t>& v) {
        Body t;
        t.put(0, type, v);
        a = t.attributes[0];
    };
    auto notes = [&](int type, const std::vector<int32_t>& v) {
        Body t;
        t.put(0, type, v);
        a = t.attributes[0];
    };
    if (b.kind == ENGINEHEUR) {
        count("api cudnn heuristics");
        int mode = b.value<int32_t>(200);
        a = Attribute{DESCRIPTOR, 0, {}, {}};
        if (mode != 2 /* FALLBACK */ && in_f32(*b.link(201)))
            for (int i = 0; i < REPEATED_IN_F32; i++) a.linked.push_back(configuration(b.link(201), FIRST));
        for (auto& e : ENGINES)
            if (mode != 2 || e.id == 0) a.linked.push_back(configuration(b.link(201), e));
        a.count = (int64_t)a.linked.size();
    } else if (b.kind == ENGINE) {
        auto* e = engine_of(b);
        const Body& graph = *b.link(1300);
        std::vector<int32_t> list;
        if (name == 1303 && e) {
            if (e->tensor_core) list.push_back(TENSOR_CORE);
            if (shortens(b)) list.push_back(DOWN_CONVERT);
            if (e->nondeterministic && is_backward(graph)) list.push_back(NONDETERMINISTIC);
            if (e->refused) list.push_back(WINOGRAD);
            list.push_back(FROM_THE_FUTURE);
        }
        if (name == 1305) list.push_back(FROM_THE_FUTURE);
        if (name == 1305) list.push_back(3); // SUPPORTS_CUDA_GRAPH_NATIVE_API
        if (name == 1305 && graph.attributes.at(801).count > 1) list.push_back(0); // RUNTIME_COMPILATION
        notes(name == 1303 ? NUMERICAL_NOTE : BEHAVIOR_NOTE, list);
    } else if (b.kind == PLAN) {
        numbers(INT64, {engine_of(*b.link(401)->link(300))->workspace});
    } else if (b.kind == ENGINECFG && name == 303) {
        auto* e = engine_of(*b.link(300));
        numbers(INT64, {e ? e->workspace : 0});
    } else {
        numbers(INT64, {b.kind == GRAPH ? (int64_t)64 : 0});
    }
    return true;
}
int finalise_plan(Body& plan) {
    count("api cudnn plan");
    const Body& engine = *plan.link(401)->link(300);
    const Body& graph = *engine.link(1300);
    auto* e = engine_of(engine);
    if (!e) return refuse(NOT_SUPPORTED, plan, "no engine " + std::to_string(engine.value<int64_t>(1301)));
    if (e->refused) return NOT_SUPPORTED;
    if (int code = fault_of_engine("plan", engine)) return code;
    if (flag("GPU_EMULATOR_REFUSE_FUSION") && graph.attributes.at(801).count > 1) return NOT_SUPPORTED;
    const Body& o = first_operation(graph);
    if (flag("GPU_EMULATOR_REFUSE_MIXED") && o.kind == BACKWARD_FILTER && tensor_of(*o.link(715)).type != tensor_of(*o.link(717)).type)
        return NOT_SUPPORTED;
    return SUCCESS;
}
} // namespace emu
