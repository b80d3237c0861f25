"""Hatchling's build hook: `pip install .` compiles the native libraries that this machine can compile.

It never fails the installation: what it cannot build it names, with the reason, and `mra-export build` builds it later. pip shows
nothing of what is said here, so the reason is installed too: commands that miss the library quote it. Code for GPUs is compiled
where a GPU is.
MRA_EXPORT_NO_NATIVE=1 leaves the compiler alone, for a pure wheel.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeLibrariesHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the libraries to a wheel, or puts them into the checkout for an editable installation."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds the libraries and adds them; hatchling calls it before it collects files."""
        if self.target_name != "wheel":
            return
        if version != "editable":
            # What `mra-export build` compiles where the package was installed without a compiler.
            for name in ("CMakeLists.txt", "kernels", "plugins"):
                build_data["force_include"][str(Path(self.root, name))] = f"mra_export/_native/{name}"
        if os.environ.get("MRA_EXPORT_NO_NATIVE"):
            self.app.display_warning("mra-export: no native library is built, as MRA_EXPORT_NO_NATIVE asks.")
            return
        # The checkout, not an installed mra_export: its build tools are what this builds.
        sys.path.insert(0, self.root)
        try:
            from mra_export.native.build import build_libraries
            from mra_export.native.libraries import not_built_file

            if version == "editable":
                output = Path(self.root, "mra_export", "lib")
            else:
                self._stage = tempfile.TemporaryDirectory(prefix="mra-export-wheel-")
                output = Path(self._stage.name)
            results = build_libraries(output_dir=output, fetch=False)
        except Exception as error:  # whatever it is, the package works without native libraries
            self.app.display_warning(f"mra-export: no native library was built: {error!r}")
            return
        finally:
            sys.path.remove(self.root)
        for result in results:
            if result.path is None:
                self.app.display_warning(f"mra-export: SKIPPED the {result.kind} library: {result.detail}")
                reason = not_built_file(result.kind, output)
                output.mkdir(parents=True, exist_ok=True)
                reason.write_text(f"{result.detail}\n", encoding="utf-8")
                if version != "editable":
                    build_data["force_include"][str(reason)] = f"mra_export/lib/{reason.name}"
                continue
            self.app.display_info(f"mra-export: built the {result.kind} library with {result.detail}")
            if version != "editable":
                build_data["force_include"][str(result.path)] = f"mra_export/lib/{result.path.name}"
                build_data["pure_python"] = False
                platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
                build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes the built libraries once they are in the wheel."""
        if hasattr(self, "_stage"):
            self._stage.cleanup()
