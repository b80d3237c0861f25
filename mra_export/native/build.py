"""Compiles the native libraries with CMake and puts them where `mra_export.native.libraries` finds them.

Only the standard library is imported: `scripts/hatch_build.py` runs this while the package itself is being built.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mra_export.errors import InputError, MraExportError
from mra_export.native.headers import Headers, fetch_headers, find_headers
from mra_export.native.libraries import LIBRARY_FILES, not_built_file, package_library_dir, user_library_dir

__all__ = [
    "BuildResult",
    "build_libraries",
    "compile_target",
    "cuda_arguments",
    "find_nvcc",
    "find_openvino",
    "find_sources",
    "find_tool",
    "has_gpu",
]


@dataclass(frozen=True)
class BuildResult:
    """What became of one library.

    Attributes:
        kind: of `LIBRARY_FILES`.
        path: the library, None where it was not built.
        detail: what it was built with; or why it was not, and what to do.
        failed: whether the compiler or CMake failed; False where something that is needed is missing.
        seconds: time taken.
    """

    kind: str
    path: Path | None
    detail: str
    failed: bool = False
    seconds: float = 0.0


class _Missing(Exception):
    """Something a build needs is not here; the text says what, and what to do."""


def build_libraries(
    kinds: Iterable[str] = (),
    *,
    cuda: bool | None = None,
    output_dir: Path | None = None,
    fetch: bool = True,
    jobs: int | None = None,
    cmake_args: Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> list[BuildResult]:
    """Compiles what this machine can compile, and can use.

    The libraries are compiled in one temporary directory, so that what they share is compiled once, and each is renamed into
    place when it is complete; an existing one stays where the build fails.

    Args:
        kinds: of `LIBRARY_FILES`; none for "onnxruntime", "tensorrt" as `cuda` says, and "openvino" where that is installed.
        cuda: whether code for GPUs is compiled where no kind is named: the plugin, and the kernels of ONNX Runtime's CUDA
            provider. None: the plugin where CUDA shows a GPU, the kernels where the ONNX Runtime is the one for GPUs.
        output_dir: where the libraries go; default the package's own directory, or the user's cache where that is not
            writable.
        fetch: whether missing headers are fetched (by apt or pip) into the user's cache.
        jobs: compilers at a time; default the number of processors.
        cmake_args: further arguments of CMake's configuration.
        progress: is told each step, one line at a time.

    Returns:
        One result for each kind, in the given order; one that was left out is not among them.

    Raises:
        InputError: a kind is unknown, or the environment names headers that are not there.
    """
    kinds = list(kinds) or [
        "onnxruntime",
        *["tensorrt"] * (has_gpu() if cuda is None else cuda),
        *["openvino"] * (find_openvino() is not None),
    ]
    for kind in kinds:
        if kind not in LIBRARY_FILES:
            raise InputError(f"There is no library of kind {kind!r}; choose of {', '.join(LIBRARY_FILES)}.")
    with tempfile.TemporaryDirectory(prefix="mra-export-build-") as tree:
        return [_build(kind, Path(tree), cuda, output_dir, fetch, jobs, cmake_args, progress) for kind in kinds]


def find_sources() -> Path | None:
    """The directory of the project's CMakeLists.txt: the checkout, or the copy that a wheel carries."""
    package = Path(__file__).resolve().parents[1]
    for root in (package.parent, package / "_native"):
        if (root / "CMakeLists.txt").is_file() and (root / "kernels" / "op_spec.h").is_file():
            return root
    return None


def find_tool(name: str) -> str | None:
    """The path of a program: on PATH, or beside this Python, where pip installs cmake and ninja."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def find_nvcc() -> str | None:
    """The path of nvcc: CUDACXX, PATH, CUDA_HOME, /usr/local/cuda, or NVIDIA's wheels beside this Python."""
    candidates = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    candidates += [str(Path(home) / "bin" / "nvcc") for home in map(os.environ.get, ("CUDA_HOME", "CUDA_PATH")) if home]
    candidates.append("/usr/local/cuda/bin/nvcc")
    for directory in sys.path:
        candidates += [str(path) for path in sorted(Path(directory).glob("nvidia/cu1[2-9]/bin/nvcc"))]
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


def find_openvino() -> Path | None:
    """The directory of CMake's configuration in OpenVINO's wheel, which has its headers and libraries too."""
    found = importlib.util.find_spec("openvino")
    places = found.submodule_search_locations if found is not None else None
    directories = [Path(place) / "cmake" for place in places or ()]
    return next((each for each in directories if (each / "OpenVINOConfig.cmake").is_file()), None)


def has_gpu() -> bool:
    """Whether CUDA's driver is here and shows a GPU to this process."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _build(
    kind: str,
    tree: Path,
    cuda: bool | None,
    output_dir: Path | None,
    fetch: bool,
    jobs: int | None,
    cmake_args: Sequence[str],
    progress: Callable[[str], None],
) -> BuildResult:
    started = time.monotonic()
    try:
        sources = find_sources()
        if sources is None:
            raise _Missing(
                "The native sources are not here. Install mra-export from a checkout or a wheel of version 0.1 on."
            )
        if not (sources / "plugins" / kind / "CMakeLists.txt").is_file():
            raise _Missing(f"The sources in {sources} have no plugins/{kind}.")
        cmake, compiler = _tools()
        # -U takes back what the library before this one was configured with.
        arguments, details = ["-UMRA_*", f"-DMRA_ONNXRUNTIME={'OFF' if kind != 'onnxruntime' else 'ON'}"], [compiler]
        if kind == "openvino":
            configuration = find_openvino()
            if configuration is None:
                raise _Missing("OpenVINO was not found. Run `pip install 'mra-export[openvino]'`.")
            arguments += ["-DMRA_OPENVINO=ON", f"-DOpenVINO_DIR={configuration}"]
            details.append(f"OpenVINO {importlib.metadata.version('openvino')}")
            cuda = False
        nvcc = find_nvcc() if kind == "tensorrt" or (_has_cuda_provider() if cuda is None else cuda) else None
        if nvcc is None and (kind == "tensorrt" or cuda):
            raise _Missing(
                "nvcc was not found. Install the CUDA toolkit, or `pip install nvidia-cuda-nvcc nvidia-cuda-crt "
                "nvidia-cuda-cccl nvidia-cuda-runtime nvidia-nvvm`."
            )
        if nvcc is not None:
            arguments += ["-DMRA_TENSORRT=ON" if kind == "tensorrt" else "-DMRA_CUDA=ON", *cuda_arguments(nvcc)]
            details += [nvcc, *["kernels of the CUDA provider"] * (kind == "onnxruntime")]
        if kind != "openvino":
            headers = _headers(kind, fetch, progress)
            arguments.append(f"-DMRA_{kind.upper()}_INCLUDE={headers.path}")
            details.append(f"{kind} headers {headers.version} ({headers.source})")
        target = _output_dir(output_dir) / LIBRARY_FILES[kind]
        progress(f"{kind}: compiling with {', '.join(details)}")
        error = compile_target(cmake, sources, tree, f"mra_{kind}", [*arguments, *cmake_args], jobs)
        if error:
            return BuildResult(kind, None, error, True, time.monotonic() - started)
        _install(next(tree.rglob(LIBRARY_FILES[kind])), target)
        not_built_file(kind, target.parent).unlink(missing_ok=True)
    except _Missing as missing:
        return BuildResult(kind, None, str(missing), False, time.monotonic() - started)
    return BuildResult(kind, target, ", ".join(details), False, time.monotonic() - started)


def _wheel_libraries(nvcc: str) -> Path | None:
    """The directory of the CUDA runtime beside an nvcc of NVIDIA's wheels; None for that of a toolkit."""
    libraries = Path(nvcc).resolve().parents[1] / "lib"
    toolkit = libraries.with_name("lib64").exists() or not (libraries / "libcudart_static.a").is_file()
    return None if toolkit else libraries


def cuda_arguments(nvcc: str) -> list[str]:
    """What CMake needs to know of CUDA, given an nvcc. The wheels have no libcudart.so, which its FindCUDAToolkit insists on."""
    arguments = [f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    libraries = _wheel_libraries(nvcc)
    if libraries is not None and (shared := sorted(libraries.glob("libcudart.so.*"))):
        arguments.append(f"-DCUDA_CUDART={shared[0]}")
    return arguments


def _has_cuda_provider() -> bool:
    """Whether the installed ONNX Runtime is the one for GPUs, the only one that can use the CUDA kernels."""
    try:
        importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _tools() -> tuple[str, str]:
    """The paths of CMake and the C++ compiler."""
    cmake = find_tool("cmake")
    if cmake is None:
        raise _Missing("cmake was not found. Run `apt-get install cmake ninja-build` or `pip install cmake ninja`.")
    compiler = os.environ.get("CXX") or next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        raise _Missing("No C++ compiler was found. Run `apt-get install g++`, or set CXX.")
    return cmake, compiler


def _headers(kind: str, fetch: bool, progress: Callable[[str], None]) -> Headers:
    try:
        found = find_headers(kind)
        if found is None and fetch:
            found = fetch_headers(kind, progress=progress)
    except InputError:
        raise
    except MraExportError as error:
        raise _Missing(str(error)) from error
    if found is None:
        raise _Missing(
            f"The headers of {kind} were not found. `mra-export build` fetches them; or set MRA_{kind.upper()}_INCLUDE."
        )
    return found


def _output_dir(output_dir: Path | None) -> Path:
    for directory in [output_dir] if output_dir else [package_library_dir(), user_library_dir()]:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = str(error)
            continue
        if os.access(directory, os.W_OK):
            return directory
        reason = f"{directory} is not writable."
    raise _Missing(f"There is no place for the library: {reason}")


def compile_target(cmake: str, sources: Path, tree: Path, target: str, arguments: list[str], jobs: int | None) -> str:
    """Configures and builds one target in the build tree `tree`, new or old; the error's text, empty if there is none."""
    # pip's wheels of cmake and ninja are Python programs: a build in isolation would hide their own packages from them.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    nvcc = next((a.partition("=")[2] for a in arguments if a.startswith("-DCMAKE_CUDA_COMPILER=")), None)
    if nvcc is not None and (libraries := _wheel_libraries(nvcc)) is not None:
        # The wheels' nvcc looks for the runtime in lib64, and they have it in lib.
        known = environment.get("LIBRARY_PATH")
        environment["LIBRARY_PATH"] = f"{libraries}:{known}" if known else str(libraries)
    generator = []
    if ninja := find_tool("ninja"):
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    for command in (
        [cmake, "-S", str(sources), "-B", str(tree), *generator, *arguments],
        [cmake, "--build", str(tree), "--target", target, "--parallel", str(jobs or os.cpu_count() or 1)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            output = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            shown = [line for line in output if "error" in line.lower() or "Error" in line][:5] or output[-5:]
            return f"`{' '.join(command[:2])} …` ended with exit code {done.returncode}: " + " / ".join(shown)
    return ""


def _install(built: Path, target: Path) -> None:
    """Puts a copy of `built` in the place of `target` in one step: a process that has the old one loaded keeps it."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as stage:
        stage_path = Path(stage.name)
    try:
        shutil.copyfile(built, stage_path)
        stage_path.chmod(0o755)
        stage_path.replace(target)
    except BaseException:
        stage_path.unlink(missing_ok=True)
        raise
