"""`gpu-check pack`: builds everything and puts it into a folder that needs nothing but PyTorch where it is run."""

import datetime
import json
import lzma
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

# What a machine with a GPU is sent at most, the repository and the pack together; and the pack's share of it.
TRAVELS, LIMIT = 64 * 2**20, 44 * 10**6
# diffusers, and what it needs that a machine with PyTorch and huggingface-hub may lack; all pure Python. The runner adds
# those that are missing there, and no others. Tools of CUDA's toolkit are taken from the machine.
WHEELS = ["diffusers==0.42.1", "importlib_metadata==10.2.0", "lazy_importer==0.1.0"]
# The tests, then the program, which has none for a GPU; without what no GPU is needed for.
PACKAGES = ["-p", "ddpm-kernels", "-p", "ddpm-model", "-p", "ddpm-train", "-p", "ddpm-cli", "--no-default-features"]
BUILDS = [["test", "--release", "--no-run", *PACKAGES, "--test", "gpu"], ["build", "--release", *PACKAGES, "--bin", "ddpm"]]
PROGRAMS = {("kernels", "gpu"): "ddpm-kernels-gpu", ("model", "gpu"): "ddpm-model-gpu", ("train", "gpu"): "ddpm-train-gpu",
            ("cli", "ddpm"): "ddpm"}
# What the tests' own filter of GPU tests is called; see CONTRIBUTING.md.
FILTER = ["--list", "--ignored", "gpu"]
# All programs share most of their code, kernels and images: within a window that spans them it is stored once. Measured on the
# four of them: 112 MB become 11.6, one by one 25.4; the highest preset saves 0.01 MB more.
COMPRESSION = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 128 * 2**20}]


def pack(root, target, features, toolchain):
    """Fills DIR; an exit code. What is there stays until the new one is whole."""
    environment = build_environment(root, features, toolchain)
    if target.exists() and any(target.iterdir()) and not (target / "pack.json").is_file():
        print(f"error: {target} exists and is no pack; name another folder", file=sys.stderr)
        return 2
    directory = target.with_name(f".{target.name}.part")
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "wheels").mkdir(parents=True)
    options = ["--features", ",".join(f"ddpm-cli/{name}" for name in features.split(","))] if features else []
    programs = build(root, environment, [[*arguments, *options] for arguments in BUILDS])
    tests = {name: found for name, path in programs.items() if name != "ddpm" and (found := gpu_tests(path, environment))}
    compress({name: path for name, path in programs.items() if name == "ddpm" or name in tests}, directory / "programs.tar.xz")
    copy_sources(root, directory)
    fetch_wheels(directory / "wheels", WHEELS)
    facts = {"packed": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "features": features,
             "revision": revision(root), "tests": tests}
    (directory / "pack.json").write_text(json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    directory.rename(target)
    return report(root, target, facts)


def build_environment(root, features, toolchain):
    """What cargo is started with: the CUDA toolchain where CUDA is wanted."""
    if "cuda" not in features.split(","):
        return dict(os.environ)
    command = [root / "scripts/cuda-toolchain", *([toolchain] if toolchain else []), "--print-env"]
    script = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    dumped = subprocess.run(["bash", "-c", f"{script}\nenv -0"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(line.split("=", 1) for line in dumped.split("\0") if "=" in line)


def cargo(root, environment, arguments):
    """Runs cargo; its messages."""
    command = [environment.get("CARGO", "cargo"), *arguments, "--message-format", "json-render-diagnostics"]
    print(" ".join(command), file=sys.stderr)
    result = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(f"error: exit code {result.returncode}: {' '.join(command)}")
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def build(root, environment, builds):
    """Runs cargo for each; the executables of PROGRAMS that were made."""
    made = {}
    for message in (message for arguments in builds for message in cargo(root, environment, arguments)):
        if message.get("executable"):
            key = pathlib.Path(message["manifest_path"]).parent.name, message["target"]["name"]
            # The program itself, not the tests that are inside it.
            if key in PROGRAMS and message["profile"]["test"] == (key[1] == "gpu"):
                made[PROGRAMS[key]] = pathlib.Path(message["executable"])
    if missing := set(PROGRAMS.values()) - set(made):
        sys.exit(f"error: cargo built no {', '.join(sorted(missing))}")
    return made


def gpu_tests(executable, environment):
    """The names of its tests for the GPU; listing them needs neither a GPU nor its libraries."""
    listed = subprocess.run([executable, *FILTER], env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")]


def compress(programs, target):
    """Executables without their symbols, in one archive."""
    with tempfile.TemporaryDirectory() as place:
        with lzma.open(target, "wb", format=lzma.FORMAT_XZ, filters=COMPRESSION) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
            for name, path in programs.items():
                stripped = pathlib.Path(place, name)
                subprocess.run(["strip", "-o", stripped, path], check=True)
                print(f"{stripped.stat().st_size / 1e6:8.1f} MB  {name}, before it is compressed", flush=True)
                archive.add(stripped, name)


def copy_sources(root, directory):
    copy = lambda source, target: shutil.copytree(  # noqa: E731
        source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    copy(root / "configs", directory / "configs")
    copy(root / "benches", directory / "benches")
    copy(root / "scripts/gpu_check", directory / "gpu_check")
    shutil.copy2(root / "scripts/gpu-check", directory)


def fetch_wheels(folder, wheels):
    """Python 3.12 is what PyTorch's machines have; the wheels are of any version."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                    "--python-version", "3.12", "--disable-pip-version-check", "--dest", folder, *wheels], check=True)


def revision(root):
    """The commit, and whether the tree differs from it."""
    git = lambda *words: subprocess.run(  # noqa: E731
        ["git", "-C", root, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()
    return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain") else "")


def tree_bytes(root):
    """What of the repository travels: what git tracks, and what it would."""
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    paths = {root / os.fsdecode(name) for name in listed.split(b"\0") if name}
    return sum(path.lstat().st_size for path in paths if path.is_symlink() or path.is_file())


def report(root, directory, facts):
    """What is in the pack, the largest first; 1 if it is too large to travel."""
    sizes = sorted(((path.stat().st_size, path) for path in directory.rglob("*") if path.is_file()), reverse=True)
    total, tree = sum(size for size, _ in sizes), tree_bytes(root)
    for size, path in sizes[:6]:
        print(f"{size / 1e6:8.1f} MB  {path.relative_to(directory)}")
    print(f"{total / 1e6:8.1f} MB  the pack, of at most {LIMIT / 1e6:.0f}; {sum(map(len, facts['tests'].values()))} GPU tests in "
          f"{len(facts['tests'])} programs")
    print(f"{(tree + total) / 1e6:8.1f} MB  with the repository ({tree / 1e6:.1f}), of at most {TRAVELS / 1e6:.1f}")
    if not facts["tests"]:
        print("warning: no test's name has `gpu` in it and is ignored: there is nothing to check there", file=sys.stderr)
    if total > LIMIT or tree + total > TRAVELS:
        print(f"error: {directory} is too large to travel", file=sys.stderr)
        return 1
    print(f"copy {directory} to a machine with a GPU, and there: gpu-check run")
    return 0
