// Runs a launch block by block, fills shared memory before each, and tells where a fault happened.
#include "block.h"
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <link.h>
#include <numeric>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

namespace emu {
static const size_t SHARED = 240 * 1024, PAGE = 4096;
static char* shared_end;   // a page that cannot be touched follows
static char* shared_start; // of the running block
static const Launch* running;
static pthread_t runner;

static void where(std::string& text) {
    auto &b = emu_here.block, &t = emu_here.thread;
    char place[160];
    snprintf(place, sizeof place, ", block (%u,%u,%u), thread (%u,%u,%u)", b.x, b.y, b.z, t.x, t.y, t.z);
    text = "kernel " + running->kernel->name + place;
}
static struct sigaction before[32];
static void fault(int signal, siginfo_t* info, void* context) {
    bool kernel = running && pthread_equal(runner, pthread_self());
    auto* work = work_of_this_thread();
    if (!kernel && !work) { // not ours
        auto& old = before[signal];
        if (old.sa_flags & SA_SIGINFO && old.sa_sigaction) return old.sa_sigaction(signal, info, context);
        if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) return old.sa_handler(signal);
        ::signal(signal, SIG_DFL);
        return;
    }
    std::string text;
    if (kernel) where(text);
    else text = *work;
    uintptr_t a = (uintptr_t)info->si_addr;
    if (!kernel) {
        char hex[32];
        snprintf(hex, sizeof hex, "0x%llx", (unsigned long long)a);
        text += ": illegal access at " + std::string(hex) + ", " + describe(a);
    } else if (signal == SIGILL) text += ": misaligned access, or an index outside an array";
    else if (signal == SIGFPE) text += ": integer division by zero";
    else if (in_stack_guard(a)) text += ": its stack is full (128 KiB here)";
    else if (a >= (uintptr_t)shared_end && a < (uintptr_t)shared_end + PAGE)
        text += ": " + std::to_string(a - (uintptr_t)shared_end) + " bytes past the end of dynamic shared memory of " + std::to_string(running->shared) + " bytes";
    else if (info->si_code == SI_KERNEL || !a) text += ": an access to a null or malformed address, or a misaligned vector";
    else {
        char hex[32];
        snprintf(hex, sizeof hex, "0x%llx", (unsigned long long)a);
        text += ": illegal access at " + std::string(hex) + ", " + describe(a);
    }
    say("%s", text.c_str());
    ::signal(signal, SIG_DFL); // the instruction faults again and the process dies
}
void catch_faults() {
    static bool done = false;
    if (done) return;
    done = true;
    struct sigaction act {};
    act.sa_sigaction = fault;
    act.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int s : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) sigaction(s, &act, &before[s]);
}
static void signal_stack() { // a fault may be an overflow of the stack
    stack_t now;
    if (sigaltstack(nullptr, &now) == 0 && !(now.ss_flags & SS_DISABLE) && now.ss_size >= 16384) return;
    static thread_local char* mine = nullptr;
    if (!mine) mine = (char*)malloc(65536);
    stack_t s{};
    s.ss_sp = mine;
    s.ss_size = 65536;
    sigaltstack(&s, nullptr);
}
// The thread-local image of the kernel's library: its static shared memory.
static std::pair<char*, size_t> static_shared(uintptr_t library) {
    struct Search { uintptr_t base; char* data; size_t size; } search{library, nullptr, 0};
    dl_iterate_phdr([](dl_phdr_info* info, size_t, void* p) {
        auto* s = (Search*)p;
        if (info->dlpi_addr != s->base) return 0;
        for (int i = 0; i < info->dlpi_phnum; i++)
            if (info->dlpi_phdr[i].p_type == PT_TLS) s->data = (char*)info->dlpi_tls_data, s->size = info->dlpi_phdr[i].p_memsz;
        return 1;
    }, &search);
    return {search.data, search.data ? search.size : 0};
}
static Order wanted_order() {
    const char* v = getenv("GPU_EMULATOR_ORDER");
    if (!v || !*v || !strcmp(v, "forward")) return Order::Forward;
    if (!strcmp(v, "reverse")) return Order::Reverse;
    if (strcmp(v, "random")) say("GPU_EMULATOR_ORDER is forward, reverse or random, not %s", v);
    return Order::Random;
}
void run_launch(const Launch& launch) {
    catch_faults();
    signal_stack();
    if (!shared_end) {
        char* m = (char*)mmap(nullptr, SHARED + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(m + SHARED, PAGE, PROT_NONE);
        shared_end = m + SHARED;
    }
    shared_start = shared_end - (launch.shared + 15) / 16 * 16;
    launch.kernel->touch();
    auto [image, image_size] = static_shared(launch.kernel->library);
    std::vector<void*> values;
    for (auto& v : launch.values) values.push_back((void*)v.data());
    static std::mt19937 random([] { const char* s = getenv("GPU_EMULATOR_SEED"); return s ? (unsigned)atoi(s) : 1u; }());
    Order how = wanted_order();
    uint64_t n = (uint64_t)launch.grid.x * launch.grid.y * launch.grid.z;
    std::vector<uint32_t> blocks;
    if (how == Order::Random) {
        blocks.resize(n);
        std::iota(blocks.begin(), blocks.end(), 0u);
        std::shuffle(blocks.begin(), blocks.end(), random);
    }
    emu_here.grid_size = launch.grid;
    emu_here.block_size = launch.block;
    running = &launch;
    runner = pthread_self();
    for (uint64_t i = 0; i < n; i++) {
        uint64_t b = how == Order::Random ? blocks[i] : how == Order::Reverse ? n - 1 - i : i;
        emu_here.block = {(unsigned)(b % launch.grid.x), (unsigned)(b / launch.grid.x % launch.grid.y),
                          (unsigned)(b / launch.grid.x / launch.grid.y)};
        if (image_size) memset(image, 0xff, image_size);
        memset(shared_start, 0xff, (size_t)(shared_end - shared_start));
        run_block(launch.kernel->call, values.data(), how, random);
    }
    running = nullptr;
}
} // namespace emu
using namespace emu;

API void* emu_dynamic_shared() { return shared_start; }
API void emu_trap(const char* what) {
    std::string text;
    where(text);
    say("%s: %s", text.c_str(), what);
    abort();
}
