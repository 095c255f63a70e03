# Unchecked: there was no Spack where this was written. Put the folder into a repository of yours as packages/moe_run.
#   spack install moe_run +cuda cuda_arch=90
from spack.package import *


class MoeRun(CMakePackage, CudaPackage):
    """Runs quantised mixture-of-experts models with the experts sharded over MPI ranks and GPUs, and says to the bit where
    two ways of computing them differ."""

    homepage = "file:README.md"
    # no public archive: git archive --prefix=moe_run-0.1.0/ -o moe_run-0.1.0.tar.gz HEAD, in a mirror or beside this file
    url = "file:///tmp/moe_run-0.1.0.tar.gz"

    license("MIT")
    version("0.1.0")

    variant("nccl", default=True, when="+cuda", description="the nccl transport")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("cmake@3.22:", type="build")
    depends_on("ninja", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("openmpi@4:")  # MPI of another make is not tried
    depends_on("hwloc@2:")
    depends_on("tomlplusplus")
    depends_on("jansson")
    depends_on("pcre2")
    depends_on("utf8proc")
    depends_on("xxhash")
    depends_on("cuda@12:", when="+cuda")
    depends_on("nccl", when="+nccl")

    generator("ninja")

    def cmake_args(self):
        args = [
            self.define_from_variant("MOE_CUDA", "cuda"),
            self.define("MOE_NCCL", self.spec.satisfies("+nccl")),
            self.define("MOE_TESTS", False),
            self.define("MOE_WERROR", False),
        ]
        if self.spec.satisfies("+cuda") and self.spec.variants["cuda_arch"].value != ("none",):
            # 90 alone would leave out the kernels for Hopper
            arch = ["90a" if a == "90" else a for a in self.spec.variants["cuda_arch"].value]
            args.append(self.define("CMAKE_CUDA_ARCHITECTURES", ";".join(arch)))
        return args
