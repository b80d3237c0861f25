"""Conan's recipe of mra_serving: conan create plugins/serving -o "&:onnxruntime_library=FILE" -o "&:onnxruntime_include=DIR"."""

import os
import re

from conan import ConanFile
from conan.errors import ConanInvalidConfiguration
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain
from conan.tools.files import copy, load


class MraServing(ConanFile):
    """The library with the backend for ONNX Runtime, which is named: it is not one of Conan's packages."""

    name = "mra_serving"
    description = "Embeds texts with a bundle of mra-export"
    license = "Apache-2.0"
    package_type = "library"
    settings = "os", "arch", "compiler", "build_type"
    options = {  # noqa: RUF012  (as Conan has it)
        "shared": [True, False],
        "python": [True, False],
        "onnxruntime_library": ["ANY"],
        "onnxruntime_include": ["ANY"],
    }
    default_options = {"shared": True, "python": False, "onnxruntime_library": "", "onnxruntime_include": ""}  # noqa: RUF012

    def set_version(self):
        """The one of CMakeLists.txt."""
        text = load(self, os.path.join(self.recipe_folder, "CMakeLists.txt"))
        self.version = re.search(r"project\(mra_serving VERSION ([0-9.]+)", text)[1]

    def export_sources(self):
        """The folder, and what it takes from the one above."""
        copy(self, "*", self.recipe_folder, os.path.join(self.export_sources_folder, "serving"))
        copy(self, "headers.cmake", os.path.dirname(self.recipe_folder), self.export_sources_folder)

    def validate(self):
        """Linux, C++17, and an ONNX Runtime."""
        check_min_cppstd(self, 17)
        if self.settings.os != "Linux":
            raise ConanInvalidConfiguration(f"mra_serving is for Linux, not {self.settings.os}.")
        for name in ("onnxruntime_library", "onnxruntime_include"):
            if not os.path.exists(str(self.options.get_safe(name))):
                found = self.options.get_safe(name)
                raise ConanInvalidConfiguration(f"{name}={found} is not there: name libonnxruntime.so and its headers.")

    def generate(self):
        """CMake's options."""
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["MRA_ONNXRUNTIME_LIBRARY"] = str(self.options.onnxruntime_library)
        toolchain.cache_variables["MRA_ONNXRUNTIME_INCLUDE"] = str(self.options.onnxruntime_include)
        toolchain.cache_variables["MRA_SERVING_OPENVINO"] = "OFF"
        toolchain.cache_variables["MRA_SERVING_PYTHON"] = "ON" if self.options.python else "OFF"
        toolchain.generate()

    def build(self):
        """The library and mra-embed."""
        cmake = CMake(self)
        cmake.configure(build_script_folder="serving")
        cmake.build()

    def package(self):
        """With ONNX Runtime beside it."""
        CMake(self).install()

    def package_info(self):
        """Its own files for CMake and pkg-config are the ones to find it by."""
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = [os.path.join("lib", "cmake", "mra_serving")]
        self.cpp_info.libs = ["mra_serving"]
        if self.options.shared:
            self.cpp_info.defines = ["MRA_SERVING_SHARED"]
        else:
            self.cpp_info.system_libs = ["pthread", "dl"]
