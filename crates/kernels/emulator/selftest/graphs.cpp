// Capture, replay, and what a capture refuses.
#include "test.h"

static CUgraphExec end(CUstream s, unsigned long long flags = 0) {
    CUgraph g;
    CUgraphExec e = nullptr;
    OK(cuStreamEndCapture(s, &g));
    OK(cuGraphInstantiateWithFlags(&e, g, flags));
    OK(cuGraphDestroy(g));
    return e;
}
void test_graphs() {
    CUstream s, other;
    OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    std::vector<float> ones(100, 1);
    auto x = upload(ones), y = upload(ones);
    emu_reset();
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    float a = 2;
    OK(launch("self_axpy_f32", 1, 128, 0, s, x, y, a, 100u));
    CUdeviceptr scratch;
    OK(cuMemAllocAsync(&scratch, 400, s));
    OK(cuMemcpyDtoDAsync(scratch, y, 400, s));
    OK(launch("self_axpy_f32", 1, 128, 0, s, scratch, y, 1.0f, 100u));
    OK(cuMemFreeAsync(scratch, s));
    CUstreamCaptureStatus status;
    OK(cuStreamIsCapturing(s, &status));
    CHECK(status == CU_STREAM_CAPTURE_STATUS_ACTIVE);
    auto e = end(s);
    CHECK(emu_get("kernel ") == 0);
    CHECK(download<float>(y, 1)[0] == 1); // nothing ran
    for (int i = 0; i < 2; i++) OK(cuGraphLaunch(e, s));
    CHECK(download<float>(y, 100) == std::vector<float>(100, 16)); // ((1 + 2) 2 + 2) 2
    CHECK(emu_get("graph kernel self_axpy") == 4);
    CHECK(emu_get("api graph launch") == 2);
    OK(cuGraphExecDestroy(e));

    for (int what = 0; what < 4; what++) {
        OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        float f;
        CUdeviceptr p;
        switch (what) {
        case 0: CHECK_CODE(cuStreamSynchronize(s), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED); break;
        case 1: CHECK_CODE(cuMemcpyDtoH(&f, x, 4), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED); break;
        case 2: CHECK_CODE(cuMemAlloc(&p, 4), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED); break;
        case 3: CHECK_CODE(cuMemFreeAsync(x, s), CUDA_ERROR_INVALID_VALUE); break;
        }
        CUgraph g;
        CHECK_CODE(launch("self_axpy_f32", 1, 128, 0, s, x, y, a, 100u), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        CHECK_CODE(cuStreamEndCapture(s, &g), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        CHECK(!g);
    }
    // memory that was freed after the capture
    CUdeviceptr gone = upload(std::vector<float>(100));
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    OK(launch("self_axpy_f32", 1, 128, 0, s, gone, y, a, 100u));
    e = end(s);
    OK(cuGraphLaunch(e, s));
    OK(cuMemFree(gone));
    CHECK_CODE(cuGraphLaunch(e, s), CUDA_ERROR_ILLEGAL_ADDRESS);
    OK(cuGraphExecDestroy(e));
    // another stream joins by an event, and must be waited for
    CUevent fork, join;
    OK(cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING));
    OK(cuEventCreate(&join, CU_EVENT_DISABLE_TIMING));
    for (bool back : {true, false}) {
        OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED));
        OK(cuEventRecord(fork, s));
        OK(cuStreamWaitEvent(other, fork, 0));
        OK(launch("self_axpy_f32", 1, 128, 0, other, x, y, a, 100u));
        OK(cuEventRecord(join, other));
        if (back) OK(cuStreamWaitEvent(s, join, 0));
        CUgraph g;
        CHECK_CODE(cuStreamEndCapture(s, &g), back ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    }
    CHECK_CODE(cuEventQuery(fork), CUDA_ERROR_CAPTURED_EVENT);
    OK(cuEventRecord(fork, s));
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED));
    CHECK_CODE(cuStreamWaitEvent(s, fork, 0), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    CUgraph g;
    CHECK_CODE(cuStreamEndCapture(s, &g), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // memory that a graph leaves allocated
    OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuMemAllocAsync(&scratch, 400, s));
    OK(cuMemcpyDtoDAsync(scratch, x, 400, s));
    e = end(s, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    for (int i = 0; i < 2; i++) OK(cuGraphLaunch(e, s));
    CHECK(download<float>(scratch, 100) == ones);
    OK(cuMemFreeAsync(scratch, s));
    // counted, not run
    setenv("GPU_EMULATOR_SKIP", "1", 1);
    OK(launch("self_axpy_f32", 1, 128, 0, s, x, x, a, 100u));
    unsetenv("GPU_EMULATOR_SKIP");
    CHECK(emu_get("kernel self_axpy_f32") == 1);
    CHECK(download<float>(x, 100) == ones);
}
