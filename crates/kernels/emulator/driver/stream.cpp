// Streams and their capture. Work runs when it is submitted; while a stream is captured it is recorded instead.
#include "driver.h"
#include <pthread.h>

namespace emu {
static std::set<Stream*>& streams() {
    static auto* s = new std::set<Stream*>;
    return *s;
}
static std::vector<std::weak_ptr<Capture>>& captures() {
    static auto* c = new std::vector<std::weak_ptr<Capture>>;
    return *c;
}
static uint64_t next_id = 1;
static Stream* legacy() {
    static auto* s = new Stream;
    return s;
}
Stream* stream_of(CUstream s) {
    static thread_local Stream* mine = nullptr;
    if (!s || s == CU_STREAM_LEGACY) return legacy();
    if (s == CU_STREAM_PER_THREAD) return mine ? mine : mine = new Stream;
    return streams().count((Stream*)s) ? (Stream*)s : nullptr;
}
bool valid_stream(CUstream s) {
    Lock lock;
    return stream_of(s) != nullptr;
}
CUresult breaks_capture(Stream* s, const char* function) {
    if (!s->capture) return CUDA_SUCCESS;
    s->capture->broken = true;
    return invalid(function, "not permitted on a stream that is being captured", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}
CUresult unsafe_call(const char* function) {
    for (auto& weak : captures()) {
        auto c = weak.lock();
        if (!c || c->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        if (c->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && c->thread != (unsigned long)pthread_self()) continue;
        c->broken = true;
        return invalid(function, "not permitted while a stream is being captured", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    return CUDA_SUCCESS;
}
CUresult submit(CUstream stream, const std::string& name, Work work) {
    Lock lock;
    auto* s = stream_of(stream);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    if (!s->capture) {
        if (s == legacy())
            for (auto& weak : captures()) // it waits for blocking streams, and those cannot be waited for
                if (auto c = weak.lock(); c && !(c->origin->flags & CU_STREAM_NON_BLOCKING)) {
                    c->broken = true;
                    return invalid(name.c_str(), "on the default stream, while a blocking stream is being captured", CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
                }
        count(name);
        return run_work(name, work);
    }
    if (s->capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (s != s->capture->origin) s->capture->joined[s] = false;
    count("captured " + name);
    s->capture->graph.nodes.push_back({name, std::move(work)});
    return CUDA_SUCCESS;
}

static const std::string* working;
static pthread_t worker;
const std::string* work_of_this_thread() { return working && pthread_equal(worker, pthread_self()) ? working : nullptr; }
CUresult run_work(const std::string& name, const Work& work) {
    auto* outer = working; // a graph launch
    worker = pthread_self();
    working = &name;
    CUresult r = work();
    working = outer;
    return r;
}

struct Event {
    unsigned flags = 0;
    bool recorded = false;
    double at = 0;
    uint64_t capture = 0; // of the last record
    Stream* stream = nullptr;
};
static std::set<Event*>& events() {
    static auto* e = new std::set<Event*>;
    return *e;
}
static Event* event_of(CUevent e) { return events().count((Event*)e) ? (Event*)e : nullptr; }
static double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}
static CUresult create(CUstream* s, unsigned flags, int priority) {
    Lock lock;
    if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
    auto* stream = new Stream;
    stream->flags = flags;
    stream->priority = priority;
    stream->id = next_id++;
    streams().insert(stream);
    *s = (CUstream)stream;
    return CUDA_SUCCESS;
}
static CUresult wait(CUstream stream, CUevent event) {
    Lock lock;
    auto* s = stream_of(stream);
    auto* e = event_of(event);
    if (!s || !e) return CUDA_ERROR_INVALID_HANDLE;
    count("api cuStreamWaitEvent");
    uint64_t mine = s->capture ? s->capture->id : 0;
    if (!e->recorded || mine == e->capture) {
        if (mine && e->recorded && s == s->capture->origin && e->stream != s) s->capture->joined[e->stream] = true;
        return CUDA_SUCCESS;
    }
    if (!e->capture) {
        s->capture->broken = true;
        return invalid("cuStreamWaitEvent", "the event was recorded outside the capture", CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    }
    for (auto& weak : captures()) // the event's capture takes this stream in
        if (auto c = weak.lock(); c && c->id == e->capture) {
            if (s->capture) return c->broken = s->capture->broken = true, CUDA_ERROR_STREAM_CAPTURE_MERGE;
            if (s == legacy()) return c->broken = true, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
            s->capture = c;
            c->joined[s] = false;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_VALUE;
}
} // namespace emu
using namespace emu;

API CUresult cuStreamCreate(CUstream* s, unsigned flags) { return create(s, flags, 0); }
API CUresult cuStreamCreateWithPriority(CUstream* s, unsigned flags, int priority) { return create(s, flags, priority); }
API CUresult cuStreamGetPriority(CUstream s, int* p) { Lock lock; auto* t = stream_of(s); return t ? *p = t->priority, CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; }
API CUresult cuStreamGetFlags(CUstream s, unsigned* f) { Lock lock; auto* t = stream_of(s); return t ? *f = t->flags, CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; }
API CUresult cuStreamGetId(CUstream s, unsigned long long* id) { Lock lock; auto* t = stream_of(s); return t ? *id = t->id, CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; }
API CUresult cuStreamDestroy(CUstream stream) {
    Lock lock;
    auto* s = stream_of(stream);
    if (!s || !streams().erase(s)) return CUDA_ERROR_INVALID_HANDLE;
    delete s;
    return CUDA_SUCCESS;
}
API CUresult cuStreamSynchronize(CUstream stream) {
    Lock lock;
    auto* s = stream_of(stream);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    count("api sync");
    return breaks_capture(s, "cuStreamSynchronize");
}
API CUresult cuStreamQuery(CUstream stream) {
    Lock lock;
    auto* s = stream_of(stream);
    return s ? breaks_capture(s, "cuStreamQuery") : CUDA_ERROR_INVALID_HANDLE;
}
API CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned) { return wait(s, e); }
API CUresult cuStreamAttachMemAsync(CUstream, CUdeviceptr, size_t, unsigned) { return CUDA_SUCCESS; }
API CUresult cuLaunchHostFunc(CUstream s, CUhostFn f, void* data) {
    return submit(s, "api host function", [=] { f(data); return CUDA_SUCCESS; });
}

API CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    Lock lock;
    auto* s = stream_of(stream);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    if (s == legacy()) return invalid("cuStreamBeginCapture", "the default stream cannot be captured", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    if (s->capture) return invalid("cuStreamBeginCapture", "the stream is being captured already", CUDA_ERROR_ILLEGAL_STATE);
    count("api capture");
    s->capture = std::make_shared<Capture>();
    s->capture->id = next_id++;
    s->capture->origin = s;
    s->capture->mode = mode;
    s->capture->thread = (unsigned long)pthread_self();
    captures().push_back(s->capture);
    return CUDA_SUCCESS;
}
API CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    Lock lock;
    *graph = nullptr;
    auto* s = stream_of(stream);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    if (!s->capture) return invalid("cuStreamEndCapture", "the stream is not being captured", CUDA_ERROR_ILLEGAL_STATE);
    auto c = s->capture;
    if (c->origin != s) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    if (c->mode != CU_STREAM_CAPTURE_MODE_RELAXED && c->thread != (unsigned long)pthread_self())
        return invalid("cuStreamEndCapture", "another thread began the capture", CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    bool unjoined = false;
    for (auto& [other, back] : c->joined) unjoined |= !back, other->capture = nullptr;
    s->capture = nullptr;
    auto& all = captures();
    for (size_t i = all.size(); i-- > 0;)
        if (auto o = all[i].lock(); !o || o == c) all.erase(all.begin() + i);
    if (c->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (unjoined) return invalid("cuStreamEndCapture", "the work of another stream was not waited for", CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    *graph = (CUgraph) new Graph(c->graph);
    return CUDA_SUCCESS;
}
static CUstreamCaptureStatus status(Stream* s) {
    return !s->capture ? CU_STREAM_CAPTURE_STATUS_NONE
           : s->capture->broken ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
}
API CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* result) {
    Lock lock;
    auto* s = stream_of(stream);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    *result = status(s);
    return CUDA_SUCCESS;
}
static CUresult info(CUstream stream, CUstreamCaptureStatus* result, cuuint64_t* id, CUgraph* graph, const CUgraphNode** deps, size_t* n) {
    Lock lock;
    auto* s = stream_of(stream);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    *result = status(s);
    if (!s->capture) return CUDA_SUCCESS;
    if (id) *id = s->capture->id;
    if (graph) *graph = (CUgraph)&s->capture->graph;
    if (deps) *deps = nullptr;
    if (n) *n = 0;
    return CUDA_SUCCESS;
}
extern "C" {
#undef cuStreamGetCaptureInfo
EXPORT CUresult cuStreamGetCaptureInfo_v2(CUstream s, CUstreamCaptureStatus* r, cuuint64_t* id, CUgraph* g, const CUgraphNode** d, size_t* n) { return info(s, r, id, g, d, n); }
EXPORT CUresult cuStreamGetCaptureInfo_v3(CUstream s, CUstreamCaptureStatus* r, cuuint64_t* id, CUgraph* g, const CUgraphNode** d,
                                          const CUgraphEdgeData** e, size_t* n) {
    if (e) *e = nullptr;
    return info(s, r, id, g, d, n);
}
}
API CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode*) { return CUDA_SUCCESS; }

API CUresult cuEventCreate(CUevent* e, unsigned flags) {
    Lock lock;
    count("api cuEventCreate");
    auto* event = new Event;
    event->flags = flags;
    events().insert(event);
    *e = (CUevent)event;
    return CUDA_SUCCESS;
}
API CUresult cuEventDestroy(CUevent event) {
    Lock lock;
    auto* e = event_of(event);
    if (!e) return CUDA_ERROR_INVALID_HANDLE;
    events().erase(e);
    delete e;
    return CUDA_SUCCESS;
}
API CUresult cuEventRecord(CUevent event, CUstream stream) {
    Lock lock;
    auto* s = stream_of(stream);
    auto* e = event_of(event);
    if (!s || !e) return CUDA_ERROR_INVALID_HANDLE;
    count("api cuEventRecord");
    if (s->capture && s->capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    e->recorded = true;
    e->at = now();
    e->capture = s->capture ? s->capture->id : 0;
    e->stream = s;
    return CUDA_SUCCESS;
}
static CUresult ask(CUevent event, const char* function) {
    Lock lock;
    auto* e = event_of(event);
    if (!e) return CUDA_ERROR_INVALID_HANDLE;
    if (e->capture) {
        for (auto& weak : captures())
            if (auto c = weak.lock(); c && c->id == e->capture) c->broken = true;
        return invalid(function, "the event was recorded in a capture", CUDA_ERROR_CAPTURED_EVENT);
    }
    return unsafe_call(function);
}
API CUresult cuEventQuery(CUevent e) { return ask(e, "cuEventQuery"); }
API CUresult cuEventSynchronize(CUevent e) { count("api event sync"); return ask(e, "cuEventSynchronize"); }
API CUresult cuEventElapsedTime(float* ms, CUevent from, CUevent to) {
    Lock lock;
    auto *a = event_of(from), *b = event_of(to);
    if (!a || !b || !a->recorded || !b->recorded || ((a->flags | b->flags) & CU_EVENT_DISABLE_TIMING)) return CUDA_ERROR_INVALID_HANDLE;
    if (a->capture || b->capture) return CUDA_ERROR_CAPTURED_EVENT;
    *ms = (float)(b->at - a->at);
    return CUDA_SUCCESS;
}
