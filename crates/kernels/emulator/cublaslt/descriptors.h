// cuBLASLt's descriptors, kept inside the memory that its opaque types have.
#pragma once
#include "../emulator.h"
#include "../product.h"

namespace emu {
struct Layout { // 64 bytes
    int type, order;
    uint64_t rows, columns;
    int64_t ld;
    int batches, magic;
    int64_t stride;
};
struct Operation { // 256 bytes
    int magic, compute, scale, pointer_mode, transa, transb, transc, fill;
    unsigned epilogue;
    int bias_type;
    char* bias;
    int64_t bias_stride;
};
struct Preference { // 64 bytes
    int magic, mode;
    uint64_t workspace;
    unsigned reductions, alignment[4];
    float waves;
};
struct Algorithm { // 64 bytes
    uint64_t magic, id, workspace, alignment, kinds;
};
static_assert(sizeof(Layout) <= 64 && sizeof(Operation) <= 256 && sizeof(Preference) <= 64 && sizeof(Algorithm) == 40);
enum { LAYOUT = 0x4c41, OPERATION = 0x4f50, PREFERENCE = 0x5052, ALGORITHM = 0x414c };
int refuse(Status s, const char* function, const char* why);
} // namespace emu
