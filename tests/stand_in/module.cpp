// scratchcuda._C as the stand-in builds it: the ops for its devices, registered by loading it; and, for Python, what a
// CUDA build of torch adds to torch._C.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "device.h"

extern "C" void scratchcuda_set_tile(int32_t tile);
extern "C" void scratchcuda_set_overlap(bool overlaps);

namespace stand_in {

extern int sync_debug_mode;
void host_waits(const char* what);

namespace py = pybind11;

using PoolHandle = std::pair<int64_t, int64_t>;

int exchange_device(int device) {
    const int before = current_device();
    if (device >= 0) set_device(device);
    return before;
}

py::tuple stream_of(int device, int64_t stream) {
    constexpr int cuda = 1;
    return py::make_tuple(stream, device, cuda);
}

py::dict statistics(int device) {
    const Memory& memory = memory_of(device);
    py::dict bytes, found;
    bytes["all"] = py::dict(py::arg("current") = memory.now, py::arg("peak") = memory.peak);
    found["allocated_bytes"] = bytes;
    return found;
}

py::dict snapshot(const std::tuple<int64_t, int64_t, bool>& asked) {
    py::list found;
    for (const size_t bytes : segments(std::get<1>(asked))) found.append(py::dict(py::arg("total_size") = bytes));
    return py::dict(py::arg("segments") = found);
}

}  // namespace stand_in

PYBIND11_MODULE(_C, m) {
    using namespace stand_in;
    m.def("build_facts", [] { return py::dict(py::arg("architectures") = std::vector<std::string>{"sm_90"}); });
    m.def("kernel_resources", [] { return py::list(); });
    m.def("set_tile", &scratchcuda_set_tile);
    m.def("set_overlap", &scratchcuda_set_overlap);

    py::module_ torch = m.def_submodule("torch");
    torch.def("_cuda_getDeviceCount", [] { return device_count; });
    torch.def("_cuda_getDevice", &current_device);
    torch.def("_cuda_setDevice", &set_device);
    torch.def("_cuda_exchangeDevice", &exchange_device);
    torch.def("_cuda_maybeExchangeDevice", &exchange_device);
    torch.def("_cuda_getCurrentStream", [](int device) { return stream_of(device, current_stream(device)); });
    torch.def("_cuda_getCurrentRawStream", &current_stream);
    torch.def("_cuda_getDefaultStream", [](int device) { return stream_of(device, 0); });
    torch.def(
        "_cuda_setStream",
        [](int64_t stream, int device, int) {
            set_device(device);
            exchange_stream(device, stream);
        },
        py::arg("stream_id"), py::arg("device_index"), py::arg("device_type"));
    torch.def("_cuda_synchronize", [] { host_waits("cudaDeviceSynchronize"); });
    torch.def("_cuda_sleep", [](int64_t) {});
    torch.def("_cuda_set_sync_debug_mode", [](int mode) { sync_debug_mode = mode; });
    torch.def("_cuda_get_sync_debug_mode", [] { return sync_debug_mode; });
    torch.def("_cuda_emptyCache", [] {});
    torch.def("_host_emptyCache", [] {});
    torch.def("_cuda_memoryStats", &statistics);
    torch.def("_cuda_resetPeakMemoryStats", [](int device) { memory_of(device).peak = memory_of(device).now; });
    torch.def("_cuda_memorySnapshot", &snapshot);
    torch.def("_cuda_isCurrentStreamCapturing", [] { return is_captured(current_device()); });
    torch.def("_graph_pool_handle", [] { return PoolHandle(0, new_pool()); });
    py::class_<Graph>(torch, "_CUDAGraph")
        .def(py::init([](bool) { return std::make_unique<Graph>(); }), py::arg("keep_graph") = false)
        .def(
            "capture_begin",
            [](Graph& graph, std::optional<PoolHandle> pool, const std::string&) {
                graph.begin(pool ? pool->second : 0);
            },
            py::arg("pool") = std::nullopt, py::arg("capture_error_mode") = "global")
        .def("capture_end", &Graph::end)
        .def("replay", &Graph::replay, py::call_guard<py::gil_scoped_release>())
        .def("reset", &Graph::reset)
        .def("pool", [](const Graph& graph) { return PoolHandle(0, graph.pool_number); });
}
