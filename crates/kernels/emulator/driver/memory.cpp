// Device memory: host pages inside one large reserved range, each allocation ending at a page that cannot be touched, and
// no address used twice, so that overruns and uses after a free fault.
#include "driver.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

namespace emu {
static const size_t PAGE = 4096;
static uintptr_t arena, arena_next, arena_end;
static size_t live, peak;
uint64_t graph_trims = 1;
static std::map<CUdeviceptr, Allocation>& table() {
    static auto* t = new std::map<CUdeviceptr, Allocation>;
    return *t;
}
static std::map<uintptr_t, size_t>& host_table() {
    static auto* t = new std::map<uintptr_t, size_t>;
    return *t;
}

size_t total_memory() {
    const char* v = getenv("GPU_EMULATOR_MEMORY");
    return v && *v ? strtoull(v, nullptr, 10) : 85'028'896'768ull;
}
size_t live_memory() { return live; }
size_t peak_memory(bool reset) {
    if (reset) peak = live;
    return peak;
}
Allocation* find(CUdeviceptr p, size_t bytes) {
    auto i = table().upper_bound(p);
    if (i == table().begin()) return nullptr;
    Allocation& a = (--i)->second;
    return p + bytes <= a.start + a.size ? &a : nullptr;
}
Allocation* find_start(CUdeviceptr p) {
    auto i = table().find(p);
    return i == table().end() ? nullptr : &i->second;
}
bool device_range(CUdeviceptr p, size_t bytes) { return bytes == 0 || find(p, bytes); }

CUresult reserve(CUdeviceptr* p, size_t bytes) {
    size_t mapped = (bytes + PAGE - 1) / PAGE * PAGE;
    // Linux lets a process have 65530 mappings, and a guarded allocation is two of them.
    size_t guard = skip() || table().size() > 25'000 ? 0 : PAGE;
    if (arena_next + mapped + 2 * PAGE > arena_end) {
        size_t size = std::max(size_t(1) << 43, mapped + 2 * PAGE);
        void* m = MAP_FAILED;
        for (; size >= mapped + 2 * PAGE && m == MAP_FAILED; size /= 2)
            m = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
        arena = arena_next = (uintptr_t)m;
        arena_end = arena + 2 * size; // the loop halved it once too often
    }
    Allocation a;
    a.size = bytes;
    a.mapped = mapped;
    a.pages = arena_next + guard;
    a.start = a.pages + mapped - (bytes + 15) / 16 * 16;
    arena_next = a.pages + mapped;
    table()[a.start] = a;
    *p = a.start;
    return CUDA_SUCCESS;
}
static bool host_has(size_t bytes) { // for a large allocation: filling it must not take the machine down
    if (bytes < (64u << 20) || skip()) return true;
    size_t kib = 0;
    char line[256];
    if (FILE* f = fopen("/proc/meminfo", "r")) {
        while (fgets(line, sizeof line, f))
            if (sscanf(line, "MemAvailable: %zu", &kib) == 1) break;
        fclose(f);
    }
    if (!kib || bytes + (1ull << 30) < kib * 1024) return true;
    say("this machine has no %zu bytes to emulate device memory (GPU_EMULATOR_SKIP=1 counts without touching it)", bytes);
    return false;
}
CUresult map(Allocation* a) {
    if (live + a->size > total_memory() || !host_has(a->size)) return CUDA_ERROR_OUT_OF_MEMORY;
    if (mprotect((void*)a->pages, a->mapped, PROT_READ | PROT_WRITE)) return CUDA_ERROR_OUT_OF_MEMORY;
    if (!skip()) memset((void*)a->pages, 0xff, a->mapped); // NaN in every format of floats
    a->live = true;
    live += a->size;
    peak = std::max(peak, live);
    return CUDA_SUCCESS;
}
void unmap(Allocation* a) {
    if (!a->live) return;
    madvise((void*)a->pages, a->mapped, MADV_DONTNEED);
    mprotect((void*)a->pages, a->mapped, PROT_NONE);
    a->live = false;
    live -= a->size;
}
void forget(CUdeviceptr p) {
    if (auto* a = find_start(p)) {
        unmap(a);
        table().erase(p);
    }
}
bool pinned(const void* p, size_t bytes) {
    auto i = host_table().upper_bound((uintptr_t)p);
    if (i == host_table().begin()) return false;
    --i;
    return (uintptr_t)p + bytes <= i->first + i->second;
}
std::string describe(uintptr_t address) {
    if (address < PAGE) return "a null pointer";
    if (address < arena || address >= arena_end) return "not device memory";
    auto i = table().upper_bound(address);
    if (i != table().begin()) {
        Allocation& a = std::prev(i)->second;
        if (!a.live && address < a.start + a.size) return "memory that a graph allocates and that is free now";
        if (address < a.pages + a.mapped + PAGE)
            return std::to_string(address - a.start - a.size) + " bytes past the end of an allocation of " + std::to_string(a.size) + " bytes";
    }
    if (i != table().end() && address >= i->second.pages - PAGE)
        return "before an allocation of " + std::to_string(i->second.size) + " bytes";
    return "freed device memory";
}
CUresult host_alloc(void** p, size_t bytes) {
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    *p = aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
    if (!*p) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(*p, 0xff, bytes);
    host_table()[(uintptr_t)*p] = bytes;
    return CUDA_SUCCESS;
}
static CUresult allocate(CUdeviceptr* p, size_t bytes) {
    if (!p || !bytes) return CUDA_ERROR_INVALID_VALUE;
    if (live + bytes > total_memory()) return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult r = reserve(p, bytes);
    if (r == CUDA_SUCCESS && (r = map(find_start(*p))) != CUDA_SUCCESS) forget(*p);
    return r;
}
static CUresult release(CUdeviceptr p, const char* function) {
    auto* a = find_start(p);
    if (!a || !a->live) return invalid(function, "not the start of an allocation");
    forget(p);
    return CUDA_SUCCESS;
}
static CUresult allocate_on(CUdeviceptr* p, size_t bytes, CUstream stream) {
    auto* s = stream_of(stream);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    if (!s->capture) {
        count("api cuMemAllocAsync");
        return allocate(p, bytes);
    }
    if (!p || !bytes) return CUDA_ERROR_INVALID_VALUE;
    CUresult r = reserve(p, bytes);
    if (r != CUDA_SUCCESS) return r;
    CUdeviceptr at = *p;
    auto& graph = s->capture->graph;
    graph.allocated.insert(at);
    graph.kept.insert(at);
    graph.most = std::max(graph.most, graph.now += bytes);
    return submit(stream, "api cuMemAllocAsync", [at] {
        auto* a = find_start(at);
        if (!a || a->live) return CUDA_ERROR_INVALID_VALUE;
        return map(a);
    });
}
static CUresult free_on(CUdeviceptr p, CUstream stream) {
    auto* s = stream_of(stream);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    if (!s->capture) {
        count("api cuMemFreeAsync");
        return release(p, "cuMemFreeAsync");
    }
    auto& graph = s->capture->graph;
    if (!graph.kept.count(p)) {
        s->capture->broken = true;
        return invalid("cuMemFreeAsync", "during a capture only memory that the capture allocated can be freed, once");
    }
    graph.kept.erase(p);
    graph.now -= find_start(p)->size;
    return submit(stream, "api cuMemFreeAsync", [p] {
        auto* a = find_start(p);
        if (!a || !a->live) return CUDA_ERROR_INVALID_VALUE;
        unmap(a);
        return CUDA_SUCCESS;
    });
}
static char POOL; // its address is the only pool
} // namespace emu
using namespace emu;

API CUresult cuMemAlloc(CUdeviceptr* p, size_t bytes) {
    Lock lock;
    if (CUresult r = unsafe_call("cuMemAlloc")) return r;
    count("api cuMemAlloc");
    return allocate(p, bytes);
}
API CUresult cuMemFree(CUdeviceptr p) {
    Lock lock;
    if (CUresult r = unsafe_call("cuMemFree")) return r;
    count("api cuMemFree");
    return p ? release(p, "cuMemFree") : CUDA_SUCCESS;
}
API CUresult cuMemAllocAsync(CUdeviceptr* p, size_t bytes, CUstream s) { Lock lock; return allocate_on(p, bytes, s); }
API CUresult cuMemAllocFromPoolAsync(CUdeviceptr* p, size_t bytes, CUmemoryPool, CUstream s) { Lock lock; return allocate_on(p, bytes, s); }
API CUresult cuMemFreeAsync(CUdeviceptr p, CUstream s) { Lock lock; return free_on(p, s); }
API CUresult cuMemGetInfo(size_t* free, size_t* total) {
    Lock lock;
    *total = total_memory();
    *free = *total - std::min(live, *total);
    return CUDA_SUCCESS;
}
API CUresult cuMemHostAlloc(void** p, size_t bytes, unsigned) {
    Lock lock;
    if (CUresult r = unsafe_call("cuMemHostAlloc")) return r;
    count("api cuMemHostAlloc");
    return host_alloc(p, bytes);
}
API CUresult cuMemAllocHost(void** p, size_t bytes) { return cuMemHostAlloc(p, bytes, 0); }
API CUresult cuMemFreeHost(void* p) {
    Lock lock;
    if (CUresult r = unsafe_call("cuMemFreeHost")) return r;
    if (!host_table().erase((uintptr_t)p)) return invalid("cuMemFreeHost", "not pinned memory");
    free(p);
    return CUDA_SUCCESS;
}
API CUresult cuMemHostGetDevicePointer(CUdeviceptr* d, void* p, unsigned) {
    Lock lock;
    if (!pinned(p, 1)) return CUDA_ERROR_INVALID_VALUE;
    *d = (CUdeviceptr)p;
    return CUDA_SUCCESS;
}
API CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* p, CUdevice) { *p = (CUmemoryPool)&POOL; return CUDA_SUCCESS; }
API CUresult cuDeviceGetMemPool(CUmemoryPool* p, CUdevice) { *p = (CUmemoryPool)&POOL; return CUDA_SUCCESS; }
API CUresult cuDeviceSetMemPool(CUdevice, CUmemoryPool) { return CUDA_SUCCESS; }
API CUresult cuMemPoolTrimTo(CUmemoryPool, size_t) { count("api cuMemPoolTrimTo"); return CUDA_SUCCESS; }
static uint64_t release_threshold;
API CUresult cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute attribute, void* value) {
    Lock lock;
    if (attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) release_threshold = *(uint64_t*)value;
    else if (attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH || attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH) peak = live;
    return CUDA_SUCCESS;
}
API CUresult cuMemPoolGetAttribute(CUmemoryPool, CUmemPool_attribute attribute, void* value) {
    Lock lock;
    switch (attribute) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: *(uint64_t*)value = release_threshold; break;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT: *(uint64_t*)value = live; break;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH: *(uint64_t*)value = peak; break;
    default: *(int*)value = 1;
    }
    return CUDA_SUCCESS;
}
API CUresult cuDeviceGetGraphMemAttribute(CUdevice, CUgraphMem_attribute, void* value) { *(uint64_t*)value = 0; return CUDA_SUCCESS; }
API CUresult cuDeviceSetGraphMemAttribute(CUdevice, CUgraphMem_attribute, void*) { return CUDA_SUCCESS; }
API CUresult cuDeviceGraphMemTrim(CUdevice) { Lock lock; graph_trims++; count("api cuDeviceGraphMemTrim"); return CUDA_SUCCESS; }
