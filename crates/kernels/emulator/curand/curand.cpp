// A cuRAND whose generators can be made (candle makes one with each device) but generate nothing.
#include "../emulator.h"
static char generator;
API int curandCreateGenerator(void** g, int) { *g = &generator; return 0; }
API int curandDestroyGenerator(void*) { return 0; }
API int curandSetStream(void*, CUstream) { return 0; }
API int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return 0; }
API int curandSetGeneratorOffset(void*, unsigned long long) { return 0; }
API int curandGetVersion(int* v) { *v = 100400; return 0; }
