// Runs a block: its threads are fibers of one thread of the host, which change only where one waits for others (a barrier
// or a warp operation). A thread that never waits needs no fiber of its own: the next one runs on its stack.
#include "driver.h"
#include "block.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sys/mman.h>

extern "C" void emu_switch(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,@function
emu_switch:
 pushq %rbp
 pushq %rbx
 pushq %r12
 pushq %r13
 pushq %r14
 pushq %r15
 movq %rsp,(%rdi)
 movq %rsi,%rsp
 popq %r15
 popq %r14
 popq %r13
 popq %r12
 popq %rbx
 popq %rbp
 ret
.size emu_switch,.-emu_switch
)");

EXPORT EmuPlace emu_here;

namespace emu {
static const size_t STACK = 128 * 1024, GUARD = 4096;
enum State : unsigned char { FRESH, READY, AT_BARRIER, AT_WARP, DONE };
struct Lane {
    State state;
    bool predicate;
    unsigned mask;
    const char* kind;
    void* sp;
    char* stack;
};
struct Warp {
    unsigned exists = 0, done = 0, waiting = 0;
    alignas(16) unsigned char in[32][64], out[32][64];
};
static std::vector<Lane> lanes;
static std::vector<Warp> warps;
static std::vector<unsigned> order;
static std::vector<char*> stacks; // free ones
static size_t position, alive, arrived;
static unsigned current;
static int votes, voters;
static void* scheduler;
static void (*body)(void**);
static void** arguments;

static char* take_stack() {
    if (stacks.empty()) {
        const size_t n = 64;
        char* m = (char*)mmap(nullptr, n * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED) say("no memory for stacks"), abort();
        for (size_t i = 0; i < n; i++) {
            mprotect(m + i * STACK, GUARD, PROT_NONE);
            stacks.push_back(m + i * STACK);
        }
    }
    char* s = stacks.back();
    stacks.pop_back();
    return s;
}
bool in_stack_guard(uintptr_t address) {
    for (auto& lane : lanes)
        if (lane.stack && address >= (uintptr_t)lane.stack && address < (uintptr_t)lane.stack + GUARD) return true;
    return false;
}
static void place(unsigned i) {
    current = i;
    auto& size = emu_here.block_size;
    emu_here.thread = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    emu_here.lane = i % 32;
}
static void yield() {
    unsigned me = current;
    emu_switch(&lanes[me].sp, scheduler);
}
static void release_barrier() {
    votes = 0;
    voters = (int)arrived;
    for (auto& lane : lanes)
        if (lane.state == AT_BARRIER) {
            votes += lane.predicate;
            lane.state = READY;
        }
    arrived = 0;
}
// If all lanes of `mask` that still run wait in the warp, exchanges what they gave.
static bool release_warp(unsigned w, unsigned mask) {
    Warp& warp = warps[w];
    unsigned needed = mask & warp.exists & ~warp.done;
    if (needed & ~warp.waiting) return false;
    const char* kind = nullptr;
    for (unsigned l = 0; l < 32; l++) {
        if (!(mask >> l & 1)) continue;
        if (needed >> l & 1) {
            Lane& lane = lanes[w * 32 + l];
            if (kind && (strcmp(kind, lane.kind) || lane.mask != mask)) emu_trap("the lanes of a warp wait in different operations, or with different masks");
            kind = lane.kind;
            memcpy(warp.out[l], warp.in[l], 64);
            lane.state = READY;
        } else {
            memset(warp.out[l], 0xff, 64);
        }
    }
    warp.waiting &= ~needed;
    return true;
}
static void finish(unsigned i) {
    lanes[i].state = DONE;
    alive--;
    Warp& warp = warps[i / 32];
    warp.done |= 1u << i % 32;
    if (arrived && arrived == alive) release_barrier();
    for (unsigned rest = warp.waiting; rest;) {
        unsigned l = (unsigned)__builtin_ctz(rest), mask = lanes[i / 32 * 32 + l].mask;
        rest &= ~mask;
        release_warp(i / 32, mask);
    }
}
static void fiber() {
    unsigned i = current;
    char* stack = lanes[i].stack;
    for (;;) {
        body(arguments);
        lanes[i].stack = nullptr;
        finish(i);
        if (position + 1 >= order.size() || lanes[order[position + 1]].state != FRESH) break;
        i = order[++position];
        lanes[i].state = READY;
        lanes[i].stack = stack;
        place(i);
    }
    stacks.push_back(stack);
    void* nowhere;
    emu_switch(&nowhere, scheduler);
}
static void resume(unsigned i) {
    Lane& lane = lanes[i];
    if (lane.state == FRESH) {
        lane.state = READY;
        lane.stack = take_stack();
        void** top = (void**)(lane.stack + STACK);
        memset(top - 8, 0, 8 * sizeof(void*));
        top[-2] = (void*)fiber;
        lane.sp = top - 8;
    }
    place(i);
    emu_switch(&scheduler, lane.sp);
}
static std::string waiting_lanes(State state) {
    std::string text;
    int n = 0;
    for (size_t i = 0; i < lanes.size(); i++)
        if (lanes[i].state == state && n++ < 8) text += (n > 1 ? "," : "") + std::to_string(i);
    return std::to_string(n) + " (threads " + text + (n > 8 ? ",..." : "") + ")";
}
static void stuck() {
    std::string text = "threads wait for ever: at a barrier " + waiting_lanes(AT_BARRIER);
    for (auto& lane : lanes)
        if (lane.state == AT_WARP) {
            char mask[32];
            snprintf(mask, sizeof mask, ", mask 0x%08x", lane.mask);
            text += "; at a warp operation " + waiting_lanes(AT_WARP) + ", the first in " + lane.kind + mask;
            break;
        }
    text += "; returned " + waiting_lanes(DONE);
    emu_trap(text.c_str());
}
void run_block(void (*f)(void**), void** values, Order how, std::mt19937& random) {
    unsigned n = emu_here.block_size.x * emu_here.block_size.y * emu_here.block_size.z;
    lanes.assign(n, Lane{});
    warps.resize((n + 31) / 32);
    for (unsigned w = 0; w < warps.size(); w++) {
        warps[w].exists = n - w * 32 >= 32 ? ~0u : (1u << (n - w * 32)) - 1;
        warps[w].done = warps[w].waiting = 0;
    }
    if (order.size() != n || how == Order::Random) {
        order.resize(n);
        for (unsigned i = 0; i < n; i++) order[i] = i;
    }
    if (how == Order::Reverse ? order[0] < order[n - 1] : order[0] > order[n - 1]) std::reverse(order.begin(), order.end());
    body = f;
    arguments = values;
    alive = n;
    arrived = 0;
    while (alive) {
        if (how == Order::Random) std::shuffle(order.begin(), order.end(), random);
        bool progress = false;
        for (position = 0; position < order.size(); position++)
            if (lanes[order[position]].state <= READY) {
                progress = true;
                resume(order[position]);
            }
        if (!progress) stuck();
    }
    if (how == Order::Random) order.clear();
}
} // namespace emu
using namespace emu;

API EmuPlace* emu_place() { return &emu_here; }
API int emu_barrier(int predicate, int op) {
    unsigned me = current;
    lanes[me].state = AT_BARRIER;
    lanes[me].predicate = predicate;
    if (++arrived == alive) release_barrier();
    else yield();
    return op == 0 ? votes : op == 1 ? votes == voters : votes != 0;
}
API const unsigned char* emu_exchange(unsigned mask, const void* value, unsigned bytes, const char* kind) {
    unsigned me = current, l = me % 32;
    Warp& warp = warps[me / 32];
    if (!(mask >> l & 1)) emu_trap("a lane calls a warp operation without its own bit in the mask");
    memset(warp.in[l], 0xff, 64);
    if (bytes) memcpy(warp.in[l], value, bytes);
    lanes[me].state = AT_WARP;
    lanes[me].mask = mask;
    lanes[me].kind = kind;
    warp.waiting |= 1u << l;
    if (!release_warp(me / 32, mask)) yield();
    return warp.out[0];
}
API unsigned emu_active_mask() {
    Warp& warp = warps[current / 32];
    return warp.exists & ~warp.done;
}
