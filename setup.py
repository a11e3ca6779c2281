"""What pyproject.toml cannot say: the native library is compiled when the package is built.

Without a compiler that works the package is built too, and its networks run on torch.
"""

import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("segpipe", "kernels")
native = runpy.run_path(str(Path(__file__).with_name("segpipe") / "kernels" / "build.py"))


class BuildLibraries(build_ext):
    """Into the wheel, or for an editable install into the checkout."""

    def run(self) -> None:
        problem = native["build"](Path("." if self.inplace else self.build_lib, KERNELS, "lib"))
        if problem:
            print(f"segpipe: no native library: {problem}; networks run on torch")

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(
    ext_modules=[Extension("segpipe.kernels.lib", [])],  # so that the wheel names its platform
    cmdclass={"build_ext": BuildLibraries},
    setup_requires=[] if any(native["compilers"]()) else [native["ZIGLANG"]],
)
