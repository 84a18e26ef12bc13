// Between the launch of a kernel and the running of its blocks.
#pragma once
#include "driver.h"
#include <random>

struct EmuPlace {
    uint3 thread, block;
    dim3 block_size, grid_size;
    unsigned lane;
};
extern EmuPlace emu_here;
extern "C" [[noreturn]] void emu_trap(const char* what);

namespace emu {
enum class Order { Forward, Reverse, Random };
void run_block(void (*f)(void**), void** values, Order how, std::mt19937& random);
bool in_stack_guard(uintptr_t address);
} // namespace emu
