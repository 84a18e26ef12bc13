// What the emulated libraries share: counting, work submitted to a stream, and a way to say what went wrong.
#pragma once
#include <cuda.h>
#include <cstdarg>
#include <functional>
#include <mutex>
#include <string>

#define EXPORT __attribute__((visibility("default")))
#define API extern "C" EXPORT

namespace emu {
EXPORT std::recursive_mutex& mutex();
struct Lock : std::lock_guard<std::recursive_mutex> {
    Lock() : lock_guard(mutex()) {}
};

EXPORT void count(const std::string& name);
EXPORT bool skip();                  // GPU_EMULATOR_SKIP: count kernels and library calls, run none
EXPORT bool flag(const char* name);  // whether an environment variable is set to something but 0
EXPORT void say(const char* format, ...) __attribute__((format(printf, 1, 2)));
EXPORT int unknown(const char* function, int code); // says once that it is not emulated; returns the code

// Runs `work` now, or records it where the stream is being captured. `name` is what is counted ("kernel cudnn").
using Work = std::function<CUresult()>;
EXPORT CUresult submit(CUstream stream, const std::string& name, Work work);
EXPORT bool valid_stream(CUstream stream);
// Whether [p, p + bytes) is device memory that is allocated, or will be when the graph being captured runs.
EXPORT bool device_range(CUdeviceptr p, size_t bytes);
} // namespace emu
