"""cuDNN's backend interface by ctypes, on a machine without a GPU: descriptors, a device that is only described, and a driver
that is only pretended.

The library and what it loads come from PyPI, 1.3 GB, once, into ${DDPM_CI_CACHE:-~/.cache/ddpm-ci}. Many of its engines are
source that NVRTC compiles while a plan is made ready; the result is handed to libcuda.so.1. Ours takes everything, runs
nothing and says that there is no device. It is a few lines of C, so `cc` must be there.
"""

import ctypes
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

PACKAGES = ["nvidia-cudnn-cu13==9.19.0.56", "nvidia-cublas==13.1.0.3", "nvidia-cuda-nvrtc==13.0.88"]
# NVIDIA's numbers for the H100 SXM, under the names that the library asks for.
H100 = {
    "deviceName": "NVIDIA H100 80GB HBM3", "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0, "multiProcessorCount": 132,
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "warpSize": 32, "regsPerBlock": 65536,
    "maxRegistersPerSM": 65536, "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048,
    "smClockRateKHz": 1980000, "memClockRateKHz": 2619000, "memoryBusWidth": 5120, "l2CacheSize": 52428800,
    "totalGlobalMem": 85017493504, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1,
}
# What cuDNN 9.19 and 9.28 look up in the driver before they compile anything. The second row gives back a handle.
DRIVER_IGNORES = """cuCtxGetCurrent cuCtxGetDevice cuCtxGetLimit cuCtxPopCurrent cuCtxPushCurrent cuDeviceGet cuDeviceGetAttribute
    cuDevicePrimaryCtxRelease cuDevicePrimaryCtxReset cuDevicePrimaryCtxRetain cuFuncGetAttribute cuFuncSetAttribute
    cuGetErrorName cuGetErrorString cuKernelGetAttribute cuKernelSetAttribute cuLaunchCooperativeKernel cuLaunchKernel
    cuLaunchKernelEx cuLibraryUnload cuLinkAddData cuLinkAddData_v2 cuLinkAddFile_v2 cuLinkComplete cuLinkCreate
    cuLinkCreate_v2 cuLinkDestroy cuMemcpyDtoH_v2 cuModuleGetGlobal_v2 cuModuleUnload
    cuOccupancyMaxActiveBlocksPerMultiprocessor cuOccupancyMaxPotentialClusterSize cuStreamGetCtx cuStreamGetGreenCtx
    cuStreamSynchronize cuTensorMapEncodeIm2col cuTensorMapEncodeTiled""".split()
DRIVER_HANDS_OUT = """cuKernelGetFunction cuLibraryGetKernel cuLibraryLoadData cuLibraryLoadFromFile cuModuleGetFunction
    cuModuleLoadData cuModuleLoadDataEx cuModuleLoadFatBinary""".split()
DRIVER = "\n".join([
    *(f"int {name}(void) {{ return 0; }}" for name in DRIVER_IGNORES),
    *(f"int {name}(void **handle) {{ *handle = handle; return 0; }}" for name in DRIVER_HANDS_OUT),
    # CUDA_ERROR_NO_DEVICE; otherwise the library asks the device and not its description.
    "int cuInit(unsigned flags) { return 100; }",
    "int cuDeviceGetCount(int *count) { return 100; }",
    "int cuDriverGetVersion(int *version) { *version = 13000; return 0; }",
])


class Refused(Exception):
    """What the library said no with."""


class Library:
    """cuDNN's backend interface; constants are read from its header, so that they cannot be mistyped."""

    def __init__(self, folder):
        self.constants = constants((folder / "include/cudnn_graph_v9.h").read_text())
        self.names = {value: name for name, value in self.constants.items() if name.startswith("CUDNN_STATUS_")}
        pretend_driver()
        # NVRTC finds it only where the system looks for libraries, and fails without it.
        for library in sorted((folder.parent / "cu13/lib").glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        # The graph library loads its siblings by name.
        for name in ["graph", "heuristic", "ops", "cnn", "engines_precompiled", "engines_runtime_compiled"]:
            library = ctypes.CDLL(str(folder / f"lib/libcudnn_{name}.so.9"), mode=ctypes.RTLD_GLOBAL)
            if name == "graph":
                self.library = library

    def __getitem__(self, name):
        return self.constants[f"CUDNN_{name}"]

    def call(self, function, *arguments):
        status = getattr(self.library, f"cudnnBackend{function}")(*arguments)
        if status:
            text = ctypes.create_string_buffer(4000)
            self.library.cudnnGetLastErrorString(text, len(text))
            raise Refused(f"{self.names.get(status, status)}: {text.value.decode()}")


def constants(header):
    """Every constant of every enum."""
    found = {}
    for body in re.findall(r"typedef enum \w*\s*\{(.*?)\}", re.sub(r"/\*.*?\*/|//[^\n]*", "", header, flags=re.DOTALL), re.DOTALL):
        value = -1
        for item in body.split(","):
            match = re.fullmatch(r"\s*(\w+)(?:\s+CUDNN_DEPRECATED\w*)?\s*(?:=\s*(\w+))?\s*", item)
            if match:
                text = match[2]
                value = value + 1 if text is None else found[text] if text in found else int(text, 0)
                found[match[1]] = value
    return found


def pretend_driver():
    """Loads a libcuda.so.1 that the library then finds by its name."""
    with tempfile.TemporaryDirectory() as scratch:
        place = f"{scratch}/libcuda.so.1"
        command = ["cc", "-xc", "-", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", place]
        subprocess.run(command, input=DRIVER.encode(), check=True)
        ctypes.CDLL(place, mode=ctypes.RTLD_GLOBAL)


class Descriptor:
    """Created, given attributes, finalised. Keeps what it refers to."""

    C_TYPES = {"INT64": ctypes.c_int64, "FLOAT": ctypes.c_float, "BOOLEAN": ctypes.c_bool, "BACKEND_DESCRIPTOR": ctypes.c_void_p}

    def __init__(self, library, kind):
        self.library, self.kind, self.kept, self.pointer = library, kind, [], ctypes.c_void_p()
        library.call("CreateDescriptor", library[f"BACKEND_{kind}_DESCRIPTOR"], ctypes.byref(self.pointer))

    def set(self, name, kind, *values):
        if kind == "BACKEND_DESCRIPTOR":
            self.kept += values
            values = [value.pointer.value for value in values]
        array = (self.C_TYPES.get(kind, ctypes.c_int) * len(values))(*values)
        self.library.call("SetAttribute", self.pointer, self.library[f"ATTR_{name}"], self.library[f"TYPE_{kind}"],
                          ctypes.c_int64(len(values)), array)
        return self

    def final(self):
        self.library.call("Finalize", self.pointer)
        return self

    def get(self, name, kind, most):
        array, count = (self.C_TYPES.get(kind, ctypes.c_int) * most)(), ctypes.c_int64()
        self.library.call("GetAttribute", self.pointer, self.library[f"ATTR_{name}"], self.library[f"TYPE_{kind}"],
                          ctypes.c_int64(most), ctypes.byref(count), array)
        return list(array[: count.value])

    def linked(self, name, kind, most):
        """Descriptors that the library fills."""
        given, count = [Descriptor(self.library, kind) for _ in range(most)], ctypes.c_int64()
        array = (ctypes.c_void_p * most)(*(one.pointer.value for one in given))
        self.library.call("GetAttribute", self.pointer, self.library[f"ATTR_{name}"], self.library["TYPE_BACKEND_DESCRIPTOR"],
                          ctypes.c_int64(most), ctypes.byref(count), array)
        return given[: count.value]


class Nodes:
    """Tensors and operations of a graph, from which everything else is built."""

    def __init__(self, library):
        self.library, self.number = library, 0

    def tensor(self, sides, strides, dtype, virtual=False, by_value=False):
        self.number += 1
        tensor = Descriptor(self.library, "TENSOR").set("TENSOR_DATA_TYPE", "DATA_TYPE", self.library[f"DATA_{dtype}"])
        tensor.set("TENSOR_DIMENSIONS", "INT64", *sides).set("TENSOR_STRIDES", "INT64", *strides)
        tensor.set("TENSOR_UNIQUE_ID", "INT64", self.number).set("TENSOR_BYTE_ALIGNMENT", "INT64", 16)
        for name, wanted in {"VIRTUAL": virtual, "BY_VALUE": by_value}.items():
            if wanted:
                tensor.set(f"TENSOR_IS_{name}", "BOOLEAN", True)
        return tensor.final()

    def operation(self, kind, roles, name=None):
        """Not final yet: some want attributes besides descriptors."""
        operation = Descriptor(self.library, f"OPERATION_{kind}")
        for role, descriptor in roles.items():
            operation.set(f"OPERATION_{name or kind}_{role}", "BACKEND_DESCRIPTOR", descriptor)
        return operation

    def pointwise(self, mode, x, y, other=None):
        how = Descriptor(self.library, "POINTWISE").set("POINTWISE_MODE", "POINTWISE_MODE", self.library[f"POINTWISE_{mode}"])
        how.set("POINTWISE_MATH_PREC", "DATA_TYPE", self.library["DATA_FLOAT"])
        roles = {"PW_DESCRIPTOR": how.final(), "XDESC": x, "YDESC": y} | ({"BDESC": other} if other else {})
        return self.operation("POINTWISE", roles).final()


def graph_of(library, operations):
    return Descriptor(library, "OPERATIONGRAPH").set("OPERATIONGRAPH_OPS", "BACKEND_DESCRIPTOR", *operations).final()


def proposals(library, device, graph, most):
    """Configurations of engines, those first that the heuristics hold to be fast."""
    heuristics = Descriptor(library, "ENGINEHEUR").set("ENGINEHEUR_OPERATION_GRAPH", "BACKEND_DESCRIPTOR", graph)
    heuristics.set("ENGINEHEUR_MODE", "HEUR_MODE", library["HEUR_MODE_A"])
    heuristics.set("ENGINEHEUR_DEVICEPROP", "BACKEND_DESCRIPTOR", device)
    return heuristics.final().linked("ENGINEHEUR_RESULTS", "ENGINECFG", most)


def engine_of(configuration):
    """Its number, what is noted of its arithmetic and what of its behaviour."""
    engine = configuration.linked("ENGINECFG_ENGINE", "ENGINE", 1)[0]
    number, = engine.get("ENGINE_GLOBAL_INDEX", "INT64", 1)
    arithmetic = engine.get("ENGINE_NUMERICAL_NOTE", "NUMERICAL_NOTE", 20)
    return number, arithmetic, engine.get("ENGINE_BEHAVIOR_NOTE", "BEHAVIOR_NOTE", 20)


def plan_of(library, device, configuration):
    """Refused if the engine cannot do it after all."""
    plan = Descriptor(library, "EXECUTION_PLAN").set("EXECUTION_PLAN_ENGINE_CONFIG", "BACKEND_DESCRIPTOR", configuration)
    return plan.set("EXECUTION_PLAN_DEVICEPROP", "BACKEND_DESCRIPTOR", device).final()


def describe(library, properties):
    """A device that is not there."""
    text = json.dumps(properties).encode()
    device = Descriptor(library, "DEVICEPROP")
    library.call("SetAttribute", device.pointer, library["ATTR_DEVICEPROP_JSON_REPRESENTATION"], library["TYPE_CHAR"],
                 ctypes.c_int64(len(text)), ctypes.create_string_buffer(text, len(text) + 1))
    return device.final()


def install():
    """The library's folder, fetched once. What it loads lies beside it, where it looks first."""
    place = pathlib.Path(os.environ.get("DDPM_CI_CACHE") or pathlib.Path.home() / ".cache/ddpm-ci", "cudnn-9.19-cuda-13.0")
    if not place.is_dir():
        print(f"fetching {' '.join(PACKAGES)} into {place}", file=sys.stderr)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            subprocess.run([sys.executable, "-m", "venv", f"{scratch}/venv"], check=True)
            subprocess.run([f"{scratch}/venv/bin/pip", "install", "--quiet", "--no-deps", "--no-compile", "--target",
                            f"{scratch}/packages", *PACKAGES], check=True)
            pathlib.Path(scratch, "packages").rename(place)
    return place / "nvidia/cudnn"
