"""Finds the headers that the native libraries are compiled against, or fetches them into the user's cache.

No ONNX Runtime or TensorRT wheel carries its headers, and the project vendors none. Only the standard library is
imported here: `scripts/fetch_headers.py` runs this module before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mra_export.errors import DependencyError, InputError
from mra_export.native.libraries import user_cache_dir

__all__ = ["HEADER_KINDS", "Headers", "fetch_headers", "find_headers", "headers_cache_dir"]


class _Kind(NamedTuple):
    marker: str  # the header that every source file includes
    version_header: str  # the header that tells the version
    version_macros: tuple[str, ...]
    minimum: tuple[int, ...]
    system_dirs: tuple[str, ...]


_KINDS = {
    "onnxruntime": _Kind(
        "onnxruntime_c_api.h",
        "onnxruntime_c_api.h",
        ("ORT_API_VERSION",),
        (21,),
        (
            "/usr/include/onnxruntime",
            "/usr/local/include/onnxruntime",
            "/usr/include/onnxruntime/core/session",
            "/usr/local/include/onnxruntime/core/session",
            "/usr/local/include",
        ),
    ),
    "tensorrt": _Kind(
        "NvInfer.h",
        "NvInferVersion.h",
        ("NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE", "NV_TENSORRT_MINOR|TRT_MINOR_ENTERPRISE"),
        (10, 3),
        (
            "/usr/include/x86_64-linux-gnu",
            "/usr/include/aarch64-linux-gnu",
            "/usr/include",
            "/usr/local/tensorrt/include",
            "/opt/tensorrt/include",
        ),
    ),
}

HEADER_KINDS = tuple(_KINDS)

_TRIXIE = "trixie"  # the first Debian release with libonnxruntime-dev
_ORT_PACKAGE = "libonnxruntime-dev"
_TENSORRT_WHEEL = "kernel-lens==2.0.1"  # carries TensorRT 10.14's headers; nothing else of it is used
_ORT_ARCHIVE_HINT = (
    "Download the release archive onnxruntime-linux-x64-1.21.0.tgz (or newer) of github.com/microsoft/onnxruntime and "
    "run scripts/fetch_headers.py onnxruntime --archive FILE, or set MRA_ONNXRUNTIME_INCLUDE to a directory with "
    "onnxruntime_c_api.h."
)
_TENSORRT_ARCHIVE_HINT = (
    "Download TensorRT's tar archive from developer.nvidia.com and run "
    "scripts/fetch_headers.py tensorrt --archive FILE, install its libnvinfer-headers-dev package, "
    "or set MRA_TENSORRT_INCLUDE to a directory with NvInfer.h."
)


@dataclass(frozen=True)
class Headers:
    """A directory of headers.

    Attributes:
        kind: "onnxruntime" or "tensorrt".
        path: the directory to pass to the compiler with -I.
        version: "API 21" for ONNX Runtime 1.21, "10.14" for TensorRT.
        source: where they come from: "environment", "system", "cache", or the package or archive they were taken from.
        sha256: of that package or archive; empty where headers were only found.
    """

    kind: str
    path: Path
    version: str
    source: str
    sha256: str = ""


def headers_cache_dir() -> Path:
    """The directory for fetched headers: one folder per kind."""
    return user_cache_dir() / "headers"


def find_headers(kind: str, directory: Path | None = None) -> Headers | None:
    """Looks for headers: `directory`, the environment (MRA_ONNXRUNTIME_INCLUDE, MRA_TENSORRT_INCLUDE), system, cache.

    Returns:
        The first that is complete and new enough, or None.

    Raises:
        InputError: `directory`, or the one that the environment names, has no such headers or too old ones.
    """
    variable = f"MRA_{kind.upper()}_INCLUDE"
    if directory is None and (named := os.environ.get(variable)):
        return _explicit(kind, Path(named), f"{variable}={named}", "environment")
    if directory is not None:
        return _explicit(kind, directory, str(directory), "option")
    for system_dir in _KINDS[kind].system_dirs:
        if found := _inspect(kind, Path(system_dir), "system"):
            return found
    return _inspect(kind, headers_cache_dir() / kind, "cache")


def fetch_headers(
    kind: str,
    *,
    archive: Path | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Headers:
    """Fetches headers into `cache_dir`/`kind`, replacing what is there.

    Args:
        kind: "onnxruntime" (by apt, from Debian's or Ubuntu's own mirror) or "tensorrt" (by pip).
        archive: a release archive (.tgz, .zip, .whl, .deb) or an unpacked directory to take them from instead.
        cache_dir: default `headers_cache_dir()`.
        progress: is told each step, one line at a time.

    Raises:
        InputError: `archive` has no such headers, or too old ones.
        DependencyError: nothing here can fetch them; the message says what to do.
    """
    target = (cache_dir or headers_cache_dir()) / kind
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{kind}-", dir=target.parent) as work_dir:
        work = Path(work_dir)
        if archive is not None:
            package = archive
            if not package.exists():
                raise InputError(f"{archive} does not exist. Give a release archive or a directory with headers.")
        elif kind == "onnxruntime":
            package = _download_onnxruntime(work, progress)
        else:
            package = _download_tensorrt(work, progress)
        sha256 = "" if package.is_dir() else hashlib.sha256(package.read_bytes()).hexdigest()
        marker = _unpack_and_find(kind, package, work / "unpacked")
        staged = work / "staged"
        staged.mkdir()
        for header in sorted(marker.parent.glob("*.h")):
            if kind == "onnxruntime" or header.name.startswith("Nv"):
                shutil.copyfile(header, staged / header.name)
        checked = _explicit(kind, staged, str(package), package.name)
        (staged / "SOURCE").write_text(
            f"{package.name}\nsha256 {sha256 or 'of a directory: none'}\n{checked.version}\n"
        )
        if target.exists():
            target.rename(work / "replaced")
        staged.rename(target)
    return Headers(kind, target, checked.version, package.name, sha256)


def _version(kind: str, directory: Path) -> tuple[int, ...] | None:
    """The version that the headers in `directory` tell, or None where they are not."""
    spec = _KINDS[kind]
    header = directory / spec.version_header
    if not (directory / spec.marker).is_file() or not header.is_file():
        return None
    text = header.read_text(errors="replace")
    numbers = [re.search(rf"^#define\s+(?:{macro})\s+(\d+)", text, re.MULTILINE) for macro in spec.version_macros]
    return tuple(int(number[1]) for number in numbers if number) if all(numbers) else None


def _spell(kind: str, version: tuple[int, ...]) -> str:
    return f"API {version[0]}" if kind == "onnxruntime" else ".".join(map(str, version))


def _inspect(kind: str, directory: Path, source: str) -> Headers | None:
    version = _version(kind, directory)
    if version is None or version < _KINDS[kind].minimum:
        return None
    return Headers(kind, directory, _spell(kind, version), source)


def _explicit(kind: str, directory: Path, named: str, source: str) -> Headers:
    """The headers in a directory that someone named: what is wrong with it is an error, not a reason to look on."""
    spec = _KINDS[kind]
    version = _version(kind, directory)
    if version is None:
        raise InputError(f"{named} has no {kind} headers: {spec.marker} and {spec.version_header} are expected in it.")
    if version < spec.minimum:
        raise InputError(
            f"{named} has {kind} headers of version {_spell(kind, version)}; "
            f"at least {_spell(kind, spec.minimum)} is needed."
        )
    return Headers(kind, directory, _spell(kind, version), source)


def _unpack(package: Path, into: Path) -> None:
    """The headers of an archive, or all of a .deb."""
    name = package.name.lower()
    if name.endswith(".deb"):
        _run(["dpkg-deb", "-x", str(package), str(into)], "")
    elif name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(package) as bundle:
            for member in bundle.namelist():
                if member.endswith(".h"):
                    bundle.extract(member, into)
    elif tarfile.is_tarfile(package):
        with tarfile.open(package) as bundle_tar:
            for entry in bundle_tar:
                if entry.isfile() and entry.name.endswith(".h"):
                    # One flat folder per directory of the archive: no path of the archive is trusted.
                    folder = into / hashlib.sha256(os.path.dirname(entry.name).encode()).hexdigest()[:16]
                    folder.mkdir(exist_ok=True)
                    source = bundle_tar.extractfile(entry)
                    assert source is not None  # a regular file
                    (folder / os.path.basename(entry.name)).write_bytes(source.read())
    else:
        raise InputError(
            f"{package} is not an archive that is understood: .tgz, .tar.gz, .zip, .whl, .deb or a directory."
        )


def _unpack_and_find(kind: str, package: Path, into: Path) -> Path:
    """Unpacks `package` (or takes the directory) and returns the path of the kind's marker header in it."""
    spec = _KINDS[kind]
    root = package
    if package.is_file():
        into.mkdir()
        root = into
        try:
            _unpack(package, into)
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
            raise InputError(f"{package} is damaged: {error}. Fetch it again.") from error
    found = sorted(root.rglob(spec.marker), key=lambda path: (len(path.parts), path))
    if not found:
        raise InputError(f"{package} holds no {spec.marker}. {_hint(kind)}")
    return found[0]


def _hint(kind: str) -> str:
    return _ORT_ARCHIVE_HINT if kind == "onnxruntime" else _TENSORRT_ARCHIVE_HINT


def _run(command: list[str], hint: str, cwd: Path | None = None) -> str:
    """Runs a command; its output, or a DependencyError with its last lines and `hint`."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise DependencyError(f"{command[0]} is not installed. {hint}".strip()) from error
    if done.returncode != 0:
        tail = " / ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])
        raise DependencyError(
            f"{' '.join(command[:3])} … failed with exit code {done.returncode}: {tail}. {hint}".strip()
        )
    return done.stdout


def _download_onnxruntime(work: Path, progress: Callable[[str], None]) -> Path:
    """The .deb with ONNX Runtime's headers, downloaded by apt without touching the system's own state."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise DependencyError(
            f"Only Debian and Ubuntu package ONNX Runtime's headers, and apt-get is not here. {_ORT_ARCHIVE_HINT}"
        )
    suite = _system_suite()
    sources = list(_mirrors(suite))
    # The system's own release first: Debian 13 and Ubuntu 25.04 on have the package.
    # On Debian 12 the same mirror has it under trixie.
    attempts = [suite] if suite else []
    if _os_release().get("ID") == "debian" and suite != _TRIXIE:
        attempts.append(_TRIXIE)
    for attempt in attempts:
        lines = [f"deb {options}{uri} {attempt} {components}" for options, uri, components in sources]
        if not lines:
            continue
        progress(f"apt: looking for {_ORT_PACKAGE} in {attempt}, with an apt state of its own")
        options = _apt_options(work, lines)
        _run(["apt-get", *options, "-qq", "update"], _ORT_ARCHIVE_HINT)
        if (
            "Candidate: (none)" in (policy := _run(["apt-cache", *options, "policy", _ORT_PACKAGE], ""))
            or not policy.strip()
        ):
            continue
        _run(["apt-get", *options, "-qq", "download", _ORT_PACKAGE], _ORT_ARCHIVE_HINT, cwd=work)
        return next(work.glob(f"{_ORT_PACKAGE}_*.deb"))
    raise DependencyError(
        f"No apt source of this machine (release {suite or 'unknown'}) has {_ORT_PACKAGE}. {_ORT_ARCHIVE_HINT}"
    )


def _os_release() -> dict[str, str]:
    path = Path("/etc/os-release")
    lines = path.read_text().splitlines() if path.is_file() else []
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines if "=" in line)}


def _system_suite() -> str:
    return _os_release().get("VERSION_CODENAME", "")


def _mirrors(suite: str) -> Iterable[tuple[str, str, str]]:
    """The apt sources that serve the distribution's own `suite`: (one-line options, URI, components)."""
    etc = Path("/etc/apt")
    one_line = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]
    for path in filter(Path.is_file, one_line):
        for line in path.read_text(errors="replace").splitlines():
            match = re.match(r"\s*deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
            if match and match[3] == suite:
                yield match[1] or "", match[2], match[4].strip()
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        text = "\n".join(line for line in path.read_text(errors="replace").splitlines() if not line.startswith("#"))
        for stanza in re.split(r"\n\s*\n", text):
            fields = {
                m[1].lower(): " ".join(m[2].split())
                for m in re.finditer(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE)
            }
            if "deb" not in fields.get("types", "").split() or suite not in fields.get("suites", "").split():
                continue
            key = fields.get("signed-by", "")
            options = f"[signed-by={key}] " if key.startswith("/") else ""
            for uri in fields.get("uris", "").split():
                yield options, uri, fields.get("components", "main")


def _apt_options(work: Path, source_lines: list[str]) -> list[str]:
    state = work / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "sources.list").write_text("\n".join(source_lines) + "\n")
    settings = {
        "Dir::State": state / "state",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "-",
        # A mirror of a newer release is only asked for its headers: pins of the system do not apply to it.
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "-",
        "Acquire::Languages": "none",
        # The lists lie in a directory of this user, where apt's own user may not write.
        "APT::Sandbox::User": "root",
    }
    return [argument for key, value in settings.items() for argument in ("-o", f"{key}={value}")]


def _download_tensorrt(work: Path, progress: Callable[[str], None]) -> Path:
    """The wheel with TensorRT's headers, downloaded by pip and not installed."""
    progress(f"pip: downloading {_TENSORRT_WHEEL} for the headers in it")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(work),
        _TENSORRT_WHEEL,
    ]
    _run(command, _TENSORRT_ARCHIVE_HINT)
    return next(work.glob("*.whl"))
