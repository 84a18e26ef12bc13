"""What a program is linked with where NVIDIA's libraries are not: stubs, or archives that load them when they are needed.

Used by scripts/cuda-toolchain. The functions are those that cudarc's bindings declare; the names of the libraries are
those of CUDA 13. x86-64 Linux only.
"""

import pathlib
import re
import subprocess
import tempfile
from typing import NamedTuple


class Library(NamedTuple):
    """A library of CUDA: the linker's name, the file that is loaded, cudarc's module, and what a function returns
    that cannot reach it."""

    name: str
    soname: str
    module: str
    error: int


LIBRARIES = [
    Library("cuda", "libcuda.so.1", "driver", 34),          # CUDA_ERROR_STUB_LIBRARY
    Library("cublas", "libcublas.so.13", "cublas", 1),      # CUBLAS_STATUS_NOT_INITIALIZED
    Library("cublasLt", "libcublasLt.so.13", "cublaslt", 1),
    Library("curand", "libcurand.so.10", "curand", 203),    # CURAND_STATUS_INITIALIZATION_FAILED
    Library("nvrtc", "libnvrtc.so.13", "nvrtc", 11),        # NVRTC_ERROR_INTERNAL_ERROR
    Library("cudnn", "libcudnn.so.9", "cudnn", 1001),       # CUDNN_STATUS_NOT_INITIALIZED
    Library("nccl", "libnccl.so.2", "nccl", 3),             # ncclInternalError
]
# Where PyPI's packages have the real ones.
REAL_FOLDERS = {"cudnn": "cudnn/lib", "nccl": "nccl/lib"}

# cudarc asks for the text of an error; without a driver these answer.
ERROR_TEXTS = """
int {prefix}cuGetErrorName(int error, const char **text) { *text = "CUDA_ERROR_STUB_LIBRARY"; return 0; }
int {prefix}cuGetErrorString(int error, const char **text) {
    *text = "libcuda.so.1 is not there: no NVIDIA driver, or a build-time stub in its place";
    return 0;
}
"""

# Loads {soname} once and looks a function up in it. Two threads that come first both load it, which only counts up.
RESOLVER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int fail(void) { return {error}; }
{error_texts}
static void *load(void) {
    const char *folders = getenv("CUDA_LIB_DIRS");
    char path[4096];
    while (folders && *folders) {
        size_t length = strcspn(folders, ":");
        if (length && length + sizeof "/{soname}" <= sizeof path) {
            memcpy(path, folders, length);
            strcpy(path + length, "/{soname}");
            void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
            if (library) return library;
        }
        folders += length + (folders[length] == ':');
    }
    void *library = dlopen("{soname}", RTLD_NOW | RTLD_GLOBAL);
    if (!library && getenv("CUDA_LAZY_VERBOSE"))
        fprintf(stderr, "%s (LD_LIBRARY_PATH or CUDA_LIB_DIRS says where it is)\n", dlerror());
    return library;
}
__attribute__((visibility("hidden"))) void *lazy_{name}_resolve(const char *name) {
    static void *library;
    static int tried;
    if (!tried) {
        library = load();
        tried = 1;
    }
    void *function = library ? dlsym(library, name) : NULL;
    if (library && !function) fprintf(stderr, "{soname} has no %s: it is older than this program\n", name);
    {fallbacks}
    return function ? function : (void *)fail;
}
"""

# Saves every register that can hold an argument (System V ABI), resolves, stores the address and jumps there.
# In: r10 the function's name, r11 where its address goes.
SLOW_PATH = """
.text
.hidden lazy_{name}_slow
.globl lazy_{name}_slow
lazy_{name}_slow:
    pushq %rbp
    movq %rsp, %rbp
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %r8
    pushq %r9
    pushq %rax
    pushq %r11
    subq $128, %rsp
    andq $-16, %rsp
    movups %xmm0, 0(%rsp)
    movups %xmm1, 16(%rsp)
    movups %xmm2, 32(%rsp)
    movups %xmm3, 48(%rsp)
    movups %xmm4, 64(%rsp)
    movups %xmm5, 80(%rsp)
    movups %xmm6, 96(%rsp)
    movups %xmm7, 112(%rsp)
    movq %r10, %rdi
    call lazy_{name}_resolve
    movups 0(%rsp), %xmm0
    movups 16(%rsp), %xmm1
    movups 32(%rsp), %xmm2
    movups 48(%rsp), %xmm3
    movups 64(%rsp), %xmm4
    movups 80(%rsp), %xmm5
    movups 96(%rsp), %xmm6
    movups 112(%rsp), %xmm7
    movq -64(%rbp), %r11
    movq %rax, (%r11)
    movq %rax, %r11
    movq -8(%rbp), %rdi
    movq -16(%rbp), %rsi
    movq -24(%rbp), %rdx
    movq -32(%rbp), %rcx
    movq -40(%rbp), %r8
    movq -48(%rbp), %r9
    movq -56(%rbp), %rax
    leave
    jmp *%r11
.section .note.GNU-stack, "", @progbits
"""

# One function: through its pointer once that is known. In sections of its own, so that the linker drops the uncalled.
TRAMPOLINE = """
.section .text.{function}, "ax", @progbits
.hidden {function}
.globl {function}
.type {function}, @function
{function}:
    endbr64
    movq .Laddress_{function}(%rip), %r11
    testq %r11, %r11
    je 1f
    jmp *%r11
1:  leaq .Laddress_{function}(%rip), %r11
    leaq .Lname_{function}(%rip), %r10
    jmp lazy_{name}_slow
.size {function}, . - {function}
.section .data.{function}, "aw", @progbits
.balign 8
.Laddress_{function}: .quad 0
.section .rodata.{function}, "a", @progbits
.Lname_{function}: .asciz "{function}"
"""


def fill(template, **values):
    """Like str.format, but for texts full of braces."""
    for key, value in values.items():
        template = template.replace("{" + key + "}", str(value))
    return template


def functions(cudarc, library):
    """The functions that cudarc's bindings of a library declare."""
    bindings = (cudarc / "src" / library.module / "sys/mod.rs").read_text()
    return sorted(set(re.findall(r"^ +fn (\w+)\(", bindings, re.MULTILINE)))


def compile_with(arguments, source, suffix, output):
    with tempfile.NamedTemporaryFile("w", suffix=suffix) as file:
        file.write(source)
        file.flush()
        subprocess.run(["gcc", "-w", *arguments, "-o", output, file.name], check=True)


def stub(library, names, folder):
    """A shared library of the real name; every function returns an error."""
    texts = fill(ERROR_TEXTS, prefix="") if library.name == "cuda" else ""
    failing = [f"int {name}(void) {{ return {library.error}; }}" for name in names if f" {name}(" not in texts]
    (folder / "stubs").mkdir(exist_ok=True)
    arguments = ["-shared", "-fPIC", "-O1", f"-Wl,-soname,{library.soname}"]
    compile_with(arguments, texts + "\n".join(failing), ".c", folder / "stubs" / library.soname)
    (folder / "stubs" / f"lib{library.name}.so").symlink_to(library.soname)


def lazy(library, names, folder):
    """An archive of the linker's name, of trampolines and the resolver they share."""
    has_texts = library.name == "cuda"
    fallbacks = [f'if (!function && !strcmp(name, "{name}")) return lazy_{name};'
                 for name in ("cuGetErrorName", "cuGetErrorString") if has_texts]
    texts = fill(ERROR_TEXTS, prefix="lazy_").replace("int lazy_", "static int lazy_") if has_texts else ""
    resolver = fill(RESOLVER, error_texts=texts, fallbacks="\n    ".join(fallbacks), **library._asdict())
    trampolines = [fill(TRAMPOLINE, name=library.name, function=name) for name in names]
    with tempfile.TemporaryDirectory() as place:
        objects = [f"{place}/{library.name}-trampolines.o", f"{place}/{library.name}-resolver.o"]
        compile_with(["-c"], fill(SLOW_PATH, name=library.name) + "".join(trampolines), ".s", objects[0])
        compile_with(["-c", "-O2", "-fPIC"], resolver, ".c", objects[1])
        subprocess.run(["ar", "rcs", folder / f"lib{library.name}.a", *objects], check=True)


def make(mode, cudarc, folder, real):
    """Everything to link, in `folder` (lib64 of CUDA_HOME). `real` is where PyPI's packages are."""
    (folder / "stubs").mkdir(exist_ok=True)
    for library in LIBRARIES:
        # libcuda belongs to the driver and is in no package: in mode real, too, it is a stub.
        if mode == "real" and library.name != "cuda":
            place = pathlib.Path("../../packages/nvidia") / REAL_FOLDERS.get(library.name, "cu13/lib")
            if not (real / place.relative_to("../../packages/nvidia") / library.soname).exists():
                raise FileNotFoundError(f"{library.soname} is not in NVIDIA's package")
            (folder / f"lib{library.name}.so").symlink_to(place / library.soname)
        else:
            (lazy if mode == "lazy" else stub)(library, functions(cudarc, library), folder)
