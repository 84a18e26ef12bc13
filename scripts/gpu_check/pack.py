"""`gpu-check pack`: builds everything and puts it into a folder that needs nothing but PyTorch where it is run."""

import datetime
import json
import lzma
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

LIMIT = 60 * 10**6
CRATES = ["ddpm-kernels", "ddpm-model", "ddpm-train"]
# diffusers, and what it needs that a machine with PyTorch alone may lack; all pure Python. The runner adds those that are
# missing there, and no others.
WHEELS = ["diffusers==0.42.1", "importlib_metadata==10.2.0", "lazy_importer==0.1.0", "httpx==0.28.1"]
# Tests that count what the emulator counts, and pass over on a GPU.
EMULATED = {"ddpm-model-ddpm_model"}
# compute-sanitizer, which PyTorch does not bring; of the toolkit that the oldest driver we run on knows.
TOOLS = ["nvidia-cuda-sanitizer-api==13.0.85"]
# What the tests' own filter of GPU tests is called; see CONTRIBUTING.md.
FILTER = ["--ignored", "gpu"]


def pack(root, target, features, toolchain):
    """Fills DIR; an exit code. What is there stays until the new one is whole."""
    environment = build_environment(root, features, toolchain)
    if target.exists() and any(target.iterdir()) and not (target / "pack.json").is_file():
        print(f"error: {target} exists and is no pack; name another folder", file=sys.stderr)
        return 2
    directory = target.with_name(f".{target.name}.part")
    shutil.rmtree(directory, ignore_errors=True)
    for folder in ["bin", "tests", "wheels"]:
        (directory / folder).mkdir(parents=True)
    options = ["--features", features] if features else []
    program = build(root, environment, ["build", "--release", "-p", "ddpm-train", "--bin", "ddpm", *options], tests=False)
    compress(program["ddpm-train-ddpm"], directory / "bin/ddpm.xz")
    packages = [word for crate in CRATES for word in ("-p", crate)]
    executables = build(root, environment, ["test", "--no-run", *packages, *options], tests=True)
    tests = {name: path for name, path in executables.items() if name not in EMULATED and gpu_tests(path, environment)}
    for name, path in tests.items():
        compress(path, directory / f"tests/{name}.xz")
    copy_sources(root, directory)
    fetch_wheels(directory / "wheels", WHEELS)
    if "cuda" in features.split(","):
        fetch_wheels(directory / "tools", TOOLS)
    facts = {"packed": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "features": features,
             "revision": revision(root), "tests": sorted(tests), "tests_without_gpu_tests": sorted(set(executables) - set(tests))}
    (directory / "pack.json").write_text(json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    directory.rename(target)
    return report(target, facts)


def build_environment(root, features, toolchain):
    """What cargo is started with: the CUDA toolchain where CUDA is wanted."""
    if "cuda" not in features.split(","):
        return dict(os.environ)
    command = [root / "scripts/cuda-toolchain", *([toolchain] if toolchain else []), "--print-env"]
    script = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    dumped = subprocess.run(["bash", "-c", f"{script}\nenv -0"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(line.split("=", 1) for line in dumped.split("\0") if "=" in line)


def build(root, environment, arguments, tests):
    """Runs cargo; the executables that it made, by `package-target`."""
    cargo = environment.get("CARGO", "cargo")
    command = [cargo, *arguments, "--message-format", "json-render-diagnostics"]
    print(" ".join(command), file=sys.stderr)
    result = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(f"error: exit code {result.returncode}: {' '.join(command)}")
    made = {}
    for message in map(json.loads, filter(lambda line: line.startswith("{"), result.stdout.splitlines())):
        if message.get("executable") and message["profile"]["test"] == tests:
            package = pathlib.Path(message["manifest_path"]).parent.name
            made[f"ddpm-{package}-{message['target']['name']}"] = pathlib.Path(message["executable"])
    return made


def gpu_tests(executable, environment):
    """Whether it has a test for the GPU; also if it cannot say so here, because it needs a library."""
    listed = subprocess.run([executable, "--list", *FILTER], env=environment, stdout=subprocess.PIPE, text=True)
    return listed.returncode != 0 or ": test" in listed.stdout


def compress(source, target):
    """Copies an executable without its symbols, and compressed: device code is mostly text (17.9 MB become 2.6)."""
    with tempfile.TemporaryDirectory() as place:
        stripped = pathlib.Path(place, "stripped")
        subprocess.run(["strip", "-o", stripped, source], check=True)
        target.write_bytes(lzma.compress(stripped.read_bytes(), preset=6))


def copy_sources(root, directory):
    copy = lambda source, target: shutil.copytree(  # noqa: E731
        source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
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


def report(directory, facts):
    """What is in the pack, the largest first; 1 if it is too large to travel."""
    sizes = sorted(((path.stat().st_size, path) for path in directory.rglob("*") if path.is_file()), reverse=True)
    total = sum(size for size, _ in sizes)
    for size, path in sizes[:8]:
        print(f"{size / 1e6:8.1f} MB  {path.relative_to(directory)}")
    print(f"{total / 1e6:8.1f} MB  in all, {len(facts['tests'])} test programs")
    if not facts["tests"]:
        print("warning: no test's name has `gpu` in it and is ignored: there is nothing to check there", file=sys.stderr)
    if total > LIMIT:
        print(f"error: {directory} has {total / 1e6:.1f} MB; {LIMIT / 1e6:.0f} may travel", file=sys.stderr)
        return 1
    print(f"copy {directory} to a machine with a GPU, and there: gpu-check run")
    return 0
