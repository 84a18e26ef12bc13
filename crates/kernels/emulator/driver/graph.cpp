// Graphs: the recorded work of a capture, run in the order it was recorded.
#include "driver.h"
#include <cstdlib>

namespace emu {
struct Exec {
    Graph graph;
    bool auto_free;
    uint64_t mapped; // after so many trims it last ran, and has its memory since; 0: never
};
CUresult run_graph(const Graph& g, bool auto_free) {
    for (CUdeviceptr p : g.kept)
        if (auto* a = find_start(p); a && a->live) {
            if (!auto_free) return invalid("cuGraphLaunch", "memory that its last launch allocated was not freed");
            unmap(a);
        }
    // The driver maps a graph's memory when it is launched, all or nothing.
    if (live_memory() + g.most > total_memory() || getenv("GPU_EMULATOR_REFUSE_GRAPHS")) return CUDA_ERROR_OUT_OF_MEMORY;
    for (auto& node : g.nodes) {
        count("graph " + node.name);
        if (CUresult r = run_work(node.name, node.run)) return invalid("cuGraphLaunch", node.name.c_str(), r);
    }
    return CUDA_SUCCESS;
}
static CUresult instantiate(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
    Lock lock;
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    if (flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH) return CUDA_ERROR_INVALID_VALUE;
    count("api graph instantiate");
    *exec = (CUgraphExec) new Exec{*(Graph*)graph, (flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH) != 0, 0};
    return CUDA_SUCCESS;
}
} // namespace emu
using namespace emu;

API CUresult cuGraphCreate(CUgraph* g, unsigned) { *g = (CUgraph) new Graph; return CUDA_SUCCESS; }
API CUresult cuGraphDestroy(CUgraph g) { Lock lock; delete (Graph*)g; return CUDA_SUCCESS; }
API CUresult cuGraphExecDestroy(CUgraphExec e) { Lock lock; delete (Exec*)e; return CUDA_SUCCESS; }
API CUresult cuGraphInstantiateWithFlags(CUgraphExec* e, CUgraph g, unsigned long long flags) { return instantiate(e, g, flags); }
API CUresult cuGraphInstantiateWithParams(CUgraphExec* e, CUgraph g, CUDA_GRAPH_INSTANTIATE_PARAMS* p) {
    p->result_out = CUDA_GRAPH_INSTANTIATE_SUCCESS;
    p->hErrNode_out = nullptr;
    return instantiate(e, g, p->flags);
}
API CUresult cuGraphUpload(CUgraphExec, CUstream s) { Lock lock; return stream_of(s) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; }
API CUresult cuGraphLaunch(CUgraphExec e, CUstream s) {
    Lock lock;
    if (!e) return CUDA_ERROR_INVALID_VALUE;
    auto* exec = (Exec*)e;
    if (exec->graph.most && exec->mapped != graph_trims) count("api graph memory");
    exec->mapped = graph_trims;
    return submit(s, "api graph launch", [graph = exec->graph, free = exec->auto_free] { return run_graph(graph, free); });
}
API CUresult cuGraphGetNodes(CUgraph g, CUgraphNode* nodes, size_t* n) {
    Lock lock;
    if (nodes) return unknown("cuGraphGetNodes with a list", CUDA_ERROR_NOT_SUPPORTED), CUDA_ERROR_NOT_SUPPORTED;
    *n = ((Graph*)g)->nodes.size();
    return CUDA_SUCCESS;
}
