// Kernels: found by name among those of the libraries in the folders `kernels` (ours) and `candle` beside this one, and launched by the rules of
// the device.
#include "driver.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <dirent.h>

namespace emu {
static std::map<std::string, Kernel>& kernels() {
    static auto* k = new std::map<std::string, Kernel>;
    return *k;
}
static std::set<Kernel*>& handles() {
    static auto* h = new std::set<Kernel*>;
    return *h;
}
static char anchor;
static void load_folder(const std::string& folder) {
    std::vector<std::string> files;
    if (DIR* d = opendir(folder.c_str())) {
        while (dirent* e = readdir(d))
            if (std::string name = e->d_name; name.size() > 3 && name.substr(name.size() - 3) == ".so") files.push_back(folder + "/" + name);
        closedir(d);
    }
    std::sort(files.begin(), files.end());
    for (auto& file : files)
        if (!dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) say("%s", dlerror());
}
static void load_kernels() {
    static bool done = false;
    if (done) return;
    done = true;
    if (const char* v = getenv("GPU_EMULATOR_KERNELS")) return load_folder(v);
    Dl_info info;
    dladdr(&anchor, &info);
    std::string folder = info.dli_fname;
    folder = folder.substr(0, folder.rfind('/') + 1);
    load_folder(folder + "kernels");
    load_folder(folder + "candle");
}
static CUresult check(const Kernel* k, dim3 grid, dim3 block, unsigned shared) {
    auto refuse = [&](const char* why) { return invalid(("launch of " + k->name).c_str(), why); };
    if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z) return refuse("a dimension of the grid or block is 0");
    if (grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) return refuse("the grid is too large");
    if (block.x > 1024 || block.y > 1024 || block.z > 64) return refuse("a dimension of the block is too large");
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (threads > 1024) return refuse("more than 1024 threads in a block");
    if (k->bounds && threads > (uint64_t)k->bounds) return refuse("more threads than its __launch_bounds__");
    if (shared > 232448) return refuse("more than 227 KiB of shared memory");
    if ((int)shared > k->dynamic_shared) return refuse("more dynamic shared memory than cuFuncSetAttribute allowed (48 KiB unless set)");
    return CUDA_SUCCESS;
}
static CUresult launch(CUfunction f, dim3 grid, dim3 block, unsigned shared, CUstream stream, void** params, void** extra) {
    Lock lock;
    auto* k = (Kernel*)f;
    if (!handles().count(k)) return CUDA_ERROR_INVALID_HANDLE;
    if (extra) return unknown("a launch with packed arguments (extra)", CUDA_ERROR_NOT_SUPPORTED), CUDA_ERROR_NOT_SUPPORTED;
    if (CUresult r = check(k, grid, block, shared)) return r;
    if (!params && !k->sizes.empty()) return CUDA_ERROR_INVALID_VALUE;
    Launch l{k, grid, block, shared, {}};
    for (size_t i = 0; i < k->sizes.size(); i++) {
        if (!params[i]) return invalid(k->name.c_str(), "an argument is missing");
        l.values.emplace_back((char*)params[i], (char*)params[i] + k->sizes[i]);
    }
    auto run = [l]() -> CUresult {
        for (size_t i = 0; i < l.values.size(); i++) {
            CUdeviceptr p;
            if (!l.kernel->pointer[i]) continue;
            memcpy(&p, l.values[i].data(), sizeof p);
            if (auto* a = find(p, 0); p && !(a && a->live) && !pinned((void*)p, 1)) {
                std::string why = "argument " + std::to_string(i) + " is a pointer outside device memory: " + describe(p);
                return invalid(("kernel " + l.kernel->name).c_str(), why.c_str(), CUDA_ERROR_ILLEGAL_ADDRESS);
            }
        }
        if (!skip()) run_launch(l);
        return CUDA_SUCCESS;
    };
    return submit(stream, "kernel " + k->name, run);
}
static CUresult function(CUfunction* f, const char* name) {
    Lock lock;
    load_kernels();
    auto i = kernels().find(name);
    if (i == kernels().end()) return invalid("cuModuleGetFunction", (std::string("no kernel ") + name).c_str(), CUDA_ERROR_NOT_FOUND);
    handles().insert(&i->second);
    *f = (CUfunction)&i->second;
    return CUDA_SUCCESS;
}
} // namespace emu
using namespace emu;

// Called by each library of kernels as it is loaded.
API void emu_register(const char* name, void (*call)(void**), void (*touch)(), int n, const size_t* sizes, const bool* pointer, int bounds) {
    Kernel k{name, call, touch, std::vector<size_t>(sizes, sizes + n), std::vector<bool>(pointer, pointer + n), bounds};
    Dl_info info;
    if (dladdr((void*)call, &info)) k.library = (uintptr_t)info.dli_fbase;
    if (!kernels().emplace(name, k).second) say("two kernels are called %s", name);
}

static char module; // its address is the only module: every image holds every kernel
static CUresult load(CUmodule* m) {
    Lock lock;
    if (CUresult r = unsafe_call("cuModuleLoad")) return r;
    *m = (CUmodule)&module;
    return CUDA_SUCCESS;
}
API CUresult cuModuleLoad(CUmodule* m, const char*) { return load(m); }
API CUresult cuModuleLoadData(CUmodule* m, const void*) { return load(m); }
API CUresult cuModuleLoadDataEx(CUmodule* m, const void*, unsigned, CUjit_option*, void**) { return load(m); }
API CUresult cuModuleLoadFatBinary(CUmodule* m, const void*) { return load(m); }
API CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
API CUresult cuModuleGetFunction(CUfunction* f, CUmodule, const char* name) { return function(f, name); }
API CUresult cuModuleGetGlobal(CUdeviceptr*, size_t*, CUmodule, const char* name) {
    return invalid("cuModuleGetGlobal", name, CUDA_ERROR_NOT_FOUND);
}
API CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int value) {
    Lock lock;
    auto* k = (Kernel*)f;
    if (!handles().count(k)) return CUDA_ERROR_INVALID_HANDLE;
    if (a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        if (value < 0 || value > 232448) return invalid("cuFuncSetAttribute", "more than 227 KiB of shared memory");
        k->dynamic_shared = value;
    }
    return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction f) {
    Lock lock;
    auto* k = (Kernel*)f;
    if (!handles().count(k)) return CUDA_ERROR_INVALID_HANDLE;
    switch (a) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *v = k->bounds ? k->bounds : 1024; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *v = k->dynamic_shared; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *v = 32; break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *v = 90; break;
    default: *v = 0;
    }
    return CUDA_SUCCESS;
}
API CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, CUfunction, int block, size_t shared, unsigned) {
    if (block <= 0 || block > 1024) return CUDA_ERROR_INVALID_VALUE;
    *n = std::min({32, 2048 / ((block + 31) / 32 * 32), (int)(233472 / (shared + 1024))});
    return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction f, int block, size_t shared) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, block, shared, 0);
}
API CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                            CUstream s, void** params, void** extra) {
    return launch(f, {gx, gy, gz}, {bx, by, bz}, shared, s, params, extra);
}
API CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**) {
    (void)f; // blocks run one after another: a barrier of the grid would wait for ever
    return (CUresult)unknown("cuLaunchCooperativeKernel", CUDA_ERROR_NOT_SUPPORTED);
}
API CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** params, void** extra) {
    for (unsigned i = 0; i < c->numAttrs; i++)
        if (c->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION || c->attrs[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
            return (CUresult)unknown("a launch of clusters or of a cooperative grid", CUDA_ERROR_NOT_SUPPORTED);
    return launch(f, {c->gridDimX, c->gridDimY, c->gridDimZ}, {c->blockDimX, c->blockDimY, c->blockDimZ}, c->sharedMemBytes, c->hStream, params, extra);
}
