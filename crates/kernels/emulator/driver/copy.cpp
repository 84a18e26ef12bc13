// Copies and fills, checked against the table of allocations.
#include "driver.h"
#include <cstring>

namespace emu {
static CUresult copy(void* to, const void* from, size_t bytes, bool to_device, bool from_device, CUstream stream, bool async,
                     const char* name) {
    Lock lock;
    if (!async)
        if (CUresult r = unsafe_call(name)) return r;
    if (!stream_of(stream)) return CUDA_ERROR_INVALID_HANDLE;
    if (!bytes) return CUDA_SUCCESS;
    if (to_device && !device_range((CUdeviceptr)to, bytes)) return invalid(name, "the destination is not (all) device memory");
    if (from_device && !device_range((CUdeviceptr)from, bytes)) return invalid(name, "the source is not (all) device memory");
    if (!to || !from) return invalid(name, "null pointer");
    if (auto* s = stream_of(stream); s->capture && !s->capture->broken && to_device != from_device) {
        const void* host = to_device ? from : to;
        if (!pinned(host, bytes)) return invalid(name, "pageable memory is captured: the graph would use that address again at each launch");
    }
    return submit(stream, name, [=] {
        for (auto [p, device] : {std::pair<const void*, bool>{to, to_device}, {from, from_device}})
            if (device && !find((CUdeviceptr)p, bytes)) return CUDA_ERROR_ILLEGAL_ADDRESS;
        if (!(skip() && to_device && from_device)) memmove(to, from, bytes);
        return CUDA_SUCCESS;
    });
}
template <class T> static CUresult fill(CUdeviceptr p, T value, size_t n, CUstream stream, bool async) {
    Lock lock;
    if (!async)
        if (CUresult r = unsafe_call("cuMemset")) return r;
    if (!n) return CUDA_SUCCESS;
    if (!device_range(p, n * sizeof(T))) return invalid("cuMemset", "not (all) device memory");
    if (p % sizeof(T)) return invalid("cuMemset", "misaligned");
    return submit(stream, "api memset", [=] {
        if (!find(p, n * sizeof(T))) return CUDA_ERROR_ILLEGAL_ADDRESS;
        if (!skip())
            for (size_t i = 0; i < n; i++) ((T*)p)[i] = value;
        return CUDA_SUCCESS;
    });
}
static bool is_device(CUdeviceptr p) { return find(p, 1) != nullptr; }
static CUresult any_copy(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s, bool async) {
    Lock lock;
    bool t = is_device(to), f = is_device(from);
    return copy((void*)to, (const void*)from, n, t, f, s, async, t ? (f ? "api DtoD" : "api HtoD") : (f ? "api DtoH" : "api HtoH"));
}
} // namespace emu
using namespace emu;

API CUresult cuMemcpyHtoD(CUdeviceptr d, const void* h, size_t n) { return copy((void*)d, h, n, true, false, nullptr, false, "api HtoD"); }
API CUresult cuMemcpyDtoH(void* h, CUdeviceptr d, size_t n) { return copy(h, (void*)d, n, false, true, nullptr, false, "api DtoH"); }
API CUresult cuMemcpyDtoD(CUdeviceptr d, CUdeviceptr s, size_t n) { return copy((void*)d, (void*)s, n, true, true, nullptr, false, "api DtoD"); }
API CUresult cuMemcpyHtoDAsync(CUdeviceptr d, const void* h, size_t n, CUstream s) { return copy((void*)d, h, n, true, false, s, true, "api HtoD"); }
API CUresult cuMemcpyDtoHAsync(void* h, CUdeviceptr d, size_t n, CUstream s) { return copy(h, (void*)d, n, false, true, s, true, "api DtoH"); }
API CUresult cuMemcpyDtoDAsync(CUdeviceptr d, CUdeviceptr f, size_t n, CUstream s) { return copy((void*)d, (void*)f, n, true, true, s, true, "api DtoD"); }
API CUresult cuMemcpy(CUdeviceptr d, CUdeviceptr s, size_t n) { return any_copy(d, s, n, nullptr, false); }
API CUresult cuMemcpyAsync(CUdeviceptr d, CUdeviceptr f, size_t n, CUstream s) { return any_copy(d, f, n, s, true); }
API CUresult cuMemcpyPeerAsync(CUdeviceptr d, CUcontext, CUdeviceptr f, CUcontext, size_t n, CUstream s) { return any_copy(d, f, n, s, true); }
API CUresult cuMemsetD8(CUdeviceptr p, unsigned char v, size_t n) { return fill(p, v, n, nullptr, false); }
API CUresult cuMemsetD16(CUdeviceptr p, unsigned short v, size_t n) { return fill(p, v, n, nullptr, false); }
API CUresult cuMemsetD32(CUdeviceptr p, unsigned v, size_t n) { return fill(p, v, n, nullptr, false); }
API CUresult cuMemsetD8Async(CUdeviceptr p, unsigned char v, size_t n, CUstream s) { return fill(p, v, n, s, true); }
API CUresult cuMemsetD16Async(CUdeviceptr p, unsigned short v, size_t n, CUstream s) { return fill(p, v, n, s, true); }
API CUresult cuMemsetD32Async(CUdeviceptr p, unsigned v, size_t n, CUstream s) { return fill(p, v, n, s, true); }
