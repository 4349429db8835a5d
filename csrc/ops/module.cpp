// scratchcuda._C: loading it registers the ops of this folder for CUDA tensors; what is no tensor op is served here, by
// pybind11: how it was built, and what each kernel takes of the current device.
#include <cxxabi.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "../kernels/launch.cuh"

extern "C" void scratchcuda_set_tile(int32_t tile);
extern "C" void scratchcuda_set_overlap(bool overlaps);

namespace {

namespace py = pybind11;

void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    throw std::runtime_error(std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error));
}

std::string name_of(const void* function) {
    const char* name = nullptr;
    check(cudaFuncGetName(&name, function));
    const std::unique_ptr<char, decltype(&std::free)> readable(abi::__cxa_demangle(name, nullptr, nullptr, nullptr),
                                                               &std::free);
    return readable ? readable.get() : name;
}

py::list kernel_resources() {
    int device = 0;
    check(cudaGetDevice(&device));
    int device_threads = 0;
    check(cudaDeviceGetAttribute(&device_threads, cudaDevAttrMaxThreadsPerMultiProcessor, device));
    py::list found;
    for (const scratchcuda::Kernel& kernel : scratchcuda::kernels()) {
        cudaFuncAttributes attributes{};
        check(cudaFuncGetAttributes(&attributes, kernel.function));
        check(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(kernel.shared_bytes)));
        int blocks = 0;
        check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel.function, kernel.threads,
                                                            kernel.shared_bytes));
        py::dict resources;
        resources["kernel"] = name_of(kernel.function);
        resources["architecture"] = attributes.binaryVersion;
        resources["registers"] = attributes.numRegs;
        resources["local_bytes"] = attributes.localSizeBytes;
        resources["shared_bytes"] = attributes.sharedSizeBytes + kernel.shared_bytes;
        resources["threads"] = kernel.threads;
        resources["blocks"] = blocks;
        resources["occupancy"] = static_cast<double>(blocks) * kernel.threads / device_threads;
        found.append(resources);
    }
    return found;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.def(
        "build_facts", [] { return py::module_::import("json").attr("loads")(BUILD_FACTS); },
        "How this library was built: versions of scratchcuda, torch, CUDA, compiler and Python, and architectures.");
    m.def("kernel_resources", &kernel_resources,
          "What each kernel takes of the current device, as the driver tells it: registers of a thread, its bytes of\n"
          "local memory, bytes of shared memory and threads of a block, blocks that fit on a multiprocessor, and the\n"
          "share of its threads that they make up. Raises RuntimeError where there is no device.");
    m.def("set_tile", &scratchcuda_set_tile, py::arg("tile"),
          "Take this block tile for all matrix products from here on: 0 small, 1 medium, 2 large, 3 thin, -1 by "
          "shape.\nWhat has been captured stays as it is.");
    m.def("set_overlap", &scratchcuda_set_overlap, py::arg("overlaps"),
          "Whether launches from here on may begin while the one before them ends, on a GPU that can (sm_90). What has "
          "been\ncaptured stays as it is.");
}
