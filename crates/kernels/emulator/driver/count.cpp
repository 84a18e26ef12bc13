// Counts of what the program did: emu_reset, emu_get and emu_dump, for tests; and what the emulator has to say.
#include "driver.h"
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emu {
std::recursive_mutex& mutex() {
    static auto* m = new std::recursive_mutex;
    return *m;
}
static std::map<std::string, long>& counts() {
    static auto* m = new std::map<std::string, long>;
    return *m;
}
static bool profiled;
void profile(bool on) {
    if (on && !profiled) count("api profile");
    profiled = on;
}
void count(const std::string& name) {
    Lock lock;
    counts()[name]++;
    if (profiled) counts()["profiled " + name]++;
}
bool flag(const char* name) {
    const char* v = getenv(name);
    return v && *v && strcmp(v, "0") != 0;
}
bool skip() { return flag("GPU_EMULATOR_SKIP"); }
void say(const char* format, ...) {
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fprintf(stderr, "gpu emulator: %s\n", text);
}
int unknown(const char* function, int code) {
    static auto* said = new std::set<std::string>;
    Lock lock;
    if (said->insert(function).second) say("%s is not emulated (returns %d)", function, code);
    return code;
}
CUresult invalid(const char* function, const char* why, CUresult code) {
    say("%s: %s (returns %d)", function, why, (int)code);
    return code;
}
} // namespace emu

API void emu_reset() {
    emu::Lock lock;
    emu::counts().clear();
    emu::peak_memory(true);
}
API long emu_get(const char* prefix) {
    emu::Lock lock;
    long sum = 0;
    for (auto& [name, n] : emu::counts())
        if (name.compare(0, strlen(prefix), prefix) == 0) sum += n;
    return sum;
}
API void emu_dump() {
    emu::Lock lock;
    for (auto& [name, n] : emu::counts()) printf("%8ld %s\n", n, name.c_str());
    fflush(stdout);
}
API size_t emu_live_bytes() { emu::Lock lock; return emu::live_memory(); }
API size_t emu_peak_bytes() { emu::Lock lock; return emu::peak_memory(); }
API int emu_unknown(const char* function, int code) { return emu::unknown(function, code); }
