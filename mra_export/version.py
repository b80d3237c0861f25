"""The version of the package, which plugins/serving/CMakeLists.txt repeats."""

__version__ = "0.1.0"
