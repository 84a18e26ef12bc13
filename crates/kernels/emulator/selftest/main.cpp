// The emulator's self-test: scripts/gpu-emulator --self-test.
#include "test.h"
#include <sys/wait.h>
#include <unistd.h>

int failures = 0;
static int checks = 0;
void report(bool good, const char* what, const char* file, int line) {
    checks++;
    if (good) return;
    failures++;
    const char* slash = strrchr(file, '/');
    fprintf(stderr, "FAILED %s:%d: %s\n", slash ? slash + 1 : file, line, what);
}
void expect_death(const char* what, const char* variable, const char* value, const char* text, const std::function<void()>& f) {
    int ends[2];
    if (pipe(ends)) abort();
    pid_t child = fork();
    if (!child) {
        dup2(ends[1], 2);
        close(ends[0]);
        close(ends[1]);
        if (variable) setenv(variable, value, 1);
        f();
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char buffer[4096];
    for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) said.append(buffer, (size_t)n);
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    bool good = WIFSIGNALED(status) && said.find(text) != std::string::npos;
    if (!good) fprintf(stderr, "  status %d, said: %s\n", status, said.c_str());
    report(good, what, __FILE__, __LINE__);
}
CUfunction function(const char* name) {
    static CUmodule m = nullptr;
    CUfunction f = nullptr;
    if (!m) OK(cuModuleLoadData(&m, ""));
    OK(cuModuleGetFunction(&f, m, name));
    return f;
}
int main() {
    OK(cuInit(0));
    CUcontext c;
    OK(cuDevicePrimaryCtxRetain(&c, 0));
    OK(cuCtxSetCurrent(c));
    test_device();
    test_graphs();
    test_matmul();
    test_convolutions();
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
