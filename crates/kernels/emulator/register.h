// Included after a .cu by the file that scripts/gpu-emulator writes for it: tells the emulator of each kernel.
#pragma once
#include <cstddef>
#include <utility>
extern "C" void emu_register(const char* name, void (*call)(void**), void (*touch)(), int n, const size_t* sizes, const bool* pointer, int bounds);
static thread_local volatile char emu_touched;
template <auto F> struct EmuKernel;
template <class... A, void (*F)(A...)> struct EmuKernel<F> {
    template <size_t... I> static void unpack(void** values, std::index_sequence<I...>) { F(*(A*)values[I]...); }
    static void call(void** values) { unpack(values, std::index_sequence_for<A...>{}); }
    static void touch() { emu_touched = 1; }
    EmuKernel(const char* name, int bounds) {
        static const size_t sizes[] = {sizeof(A)..., 0};
        static const bool pointer[] = {std::is_pointer_v<A>..., false};
        emu_register(name, call, touch, sizeof...(A), sizes, pointer, bounds);
    }
};
inline int emu_first(int n) { return n; }
template <class... T> inline int emu_first(int n, T...) { return n; }
