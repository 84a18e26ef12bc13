// Inside libcuda.so.1: memory, streams and graphs, kernels.
#pragma once
#include "../emulator.h"
#include "../device/vectors.h"
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <vector>

namespace emu {
// --- memory.cpp
struct Allocation {
    CUdeviceptr start = 0;
    size_t size = 0, mapped = 0; // asked for; whole pages
    uintptr_t pages = 0;         // where the pages begin
    bool live = false;           // false: reserved by a graph, no memory behind it
};
Allocation* find(CUdeviceptr p, size_t bytes); // live or reserved
Allocation* find_start(CUdeviceptr p);
CUresult reserve(CUdeviceptr* p, size_t bytes);
CUresult map(Allocation* a);
void unmap(Allocation* a);
void forget(CUdeviceptr p);
bool pinned(const void* p, size_t bytes);
extern uint64_t graph_trims; // how often the memory of graphs that do not run was taken from them
size_t total_memory();
size_t live_memory();
size_t peak_memory(bool reset = false);
std::string describe(uintptr_t address); // in words, for a fault

// --- stream.cpp
struct Node {
    std::string name;
    Work run;
};
struct Graph {
    std::vector<Node> nodes;
    std::set<CUdeviceptr> allocated; // by its nodes
    std::set<CUdeviceptr> kept;      // of those, not freed by its nodes
    size_t now = 0, most = 0;        // bytes its nodes hold at the end, and at most until then
};
struct Stream;
struct Capture {
    uint64_t id = 0;
    Graph graph;
    Stream* origin = nullptr;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    bool broken = false;
    unsigned long thread = 0;
    std::map<Stream*, bool> joined; // whether its last work was waited for by the origin
};
struct Stream {
    std::shared_ptr<Capture> capture;
    unsigned flags = 0;
    int priority = 0;
    uint64_t id = 0;
};
Stream* stream_of(CUstream s); // nullptr: no such stream
CUresult breaks_capture(Stream* s, const char* function); // not allowed on a capturing stream: 900
CUresult unsafe_call(const char* function);               // not allowed while anything captures
CUresult run_work(const std::string& name, const Work& work);
const std::string* work_of_this_thread(); // what runs, for a fault
CUresult run_graph(const Graph& g, bool auto_free);
CUresult invalid(const char* function, const char* why, CUresult code = CUDA_ERROR_INVALID_VALUE);

// --- count.cpp
void profile(bool on); // a profiler looks, or no longer

// --- kernel.cpp, block.cpp
struct Kernel {
    std::string name;
    void (*call)(void** arguments);
    void (*touch)(); // makes the running thread's image of static shared memory
    std::vector<size_t> sizes;
    std::vector<bool> pointer;
    int bounds = 0;              // __launch_bounds__, or 0
    uintptr_t library = 0;       // where the library with its code is loaded
    int dynamic_shared = 48 * 1024;
};
struct Launch {
    Kernel* kernel;
    dim3 grid, block;
    unsigned shared;
    std::vector<std::vector<char>> values;
};
void run_launch(const Launch& launch);
void catch_faults();
} // namespace emu
