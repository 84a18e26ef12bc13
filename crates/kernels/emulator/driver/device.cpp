// Initialisation, the one device and its context, and the names of errors.
#include "driver.h"
#include <algorithm>
#include <cstring>

// The values of an H100 SXM (80 GB).
static int attribute(CUdevice_attribute a, int* v) {
    switch (a) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return *v = 1024, 0;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return *v = 1024, 0;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return *v = 64, 0;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return *v = 2147483647, 0;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return *v = 65535, 0;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return *v = 49152, 0;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return *v = 232448, 0;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return *v = 233472, 0;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return *v = 1024, 0;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: return *v = 65536, 0;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return *v = 32, 0;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return *v = 65536, 0;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return *v = 1980000, 0;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return *v = 2619000, 0;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return *v = 5120, 0;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return *v = 52428800, 0;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return *v = 132, 0;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return *v = 2048, 0;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return *v = 32, 0;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return *v = 9, 0;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return *v = 0, 0;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return *v = 3, 0;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH: return *v = 2147483647, 0;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: return *v = 512, 0;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS: case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_ECC_ENABLED: case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED: return *v = 1, 0;
    case CU_DEVICE_ATTRIBUTE_INTEGRATED: case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE: case CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT:
    case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID: case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID:
    case CU_DEVICE_ATTRIBUTE_MULTI_GPU_BOARD: case CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS: return *v = 0, 0;
    default: return *v = 0, emu::say("device attribute %d is not emulated: 0", (int)a), 0;
    }
}
static const struct { CUresult code; const char *name, *text; } ERRORS[] = {
#define E(name, text) {name, #name, text}
    E(CUDA_SUCCESS, "no error"), E(CUDA_ERROR_INVALID_VALUE, "invalid argument"), E(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    E(CUDA_ERROR_NOT_INITIALIZED, "initialization error"), E(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    E(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"), E(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    E(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    E(CUDA_ERROR_NOT_FOUND, "named symbol not found"), E(CUDA_ERROR_NOT_READY, "device not ready"),
    E(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    E(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    E(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"), E(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    E(CUDA_ERROR_NOT_PERMITTED, "operation not permitted"), E(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    E(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    E(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    E(CUDA_ERROR_STREAM_CAPTURE_MERGE, "operation would result in a merge of separate capture sequences"),
    E(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began"),
    E(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    E(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream"),
    E(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream"),
    E(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"),
    E(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread"),
    E(CUDA_ERROR_UNKNOWN, "unknown error"),
#undef E
};
static char context; // its address is the primary context
static thread_local CUcontext current;
using namespace emu;

API CUresult cuInit(unsigned flags) {
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    Lock lock;
    catch_faults();
    return CUDA_SUCCESS;
}
API CUresult cuDriverGetVersion(int* v) { *v = 13000; return CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int* n) { *n = 1; return CUDA_SUCCESS; }
API CUresult cuDeviceGet(CUdevice* d, int ordinal) { *d = 0; return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE; }
API CUresult cuDeviceGetName(char* s, int n, CUdevice) { snprintf(s, (size_t)n, "NVIDIA H100 80GB HBM3 (emulated)"); return CUDA_SUCCESS; }
API CUresult cuDeviceGetUuid(CUuuid* u, CUdevice) { memset(u, 0x45, sizeof *u); return CUDA_SUCCESS; }
API CUresult cuDeviceTotalMem(size_t* n, CUdevice) { *n = total_memory(); return CUDA_SUCCESS; }
API CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice) { return (CUresult)attribute(a, v); }
API CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice) { *c = (CUcontext)&context; return CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
API CUresult cuCtxGetCurrent(CUcontext* c) { *c = current; return CUDA_SUCCESS; }
API CUresult cuCtxSetCurrent(CUcontext c) { current = c; return CUDA_SUCCESS; }
API CUresult cuCtxGetDevice(CUdevice* d) { *d = 0; return current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }
API CUresult cuCtxSetFlags(unsigned) { return CUDA_SUCCESS; }
API CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) { *least = 0; *greatest = -5; return CUDA_SUCCESS; }
API CUresult cuCtxGetLimit(size_t* v, CUlimit) { *v = 1024; return CUDA_SUCCESS; }
API CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
API CUresult cuProfilerStart() { Lock lock; profile(true); return CUDA_SUCCESS; }
API CUresult cuProfilerStop() { Lock lock; profile(false); return CUDA_SUCCESS; }
API CUresult cuCtxSynchronize() {
    Lock lock;
    count("api sync");
    return unsafe_call("cuCtxSynchronize");
}
API CUresult cuGetErrorName(CUresult e, const char** s) {
    for (auto& error : ERRORS)
        if (error.code == e) return *s = error.name, CUDA_SUCCESS;
    *s = "CUDA_ERROR";
    return CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult e, const char** s) {
    for (auto& error : ERRORS)
        if (error.code == e) return *s = error.text, CUDA_SUCCESS;
    *s = "an error";
    return CUDA_SUCCESS;
}
