// What a CUDA build of torch adds to its core: an allocator, a device guard with streams and events, hooks, and its
// operations, which here are those of the CPU on the same memory.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "device.h"
#include "launches.h"

namespace stand_in {

int sync_debug_mode = 0;  // as torch.cuda.set_sync_debug_mode numbers them

void host_waits(const char* what) {
    refuse_in_capture(what);
    if (sync_debug_mode == 1) TORCH_WARN("called a synchronizing CUDA operation: ", what);
    if (sync_debug_mode == 2) refuse(std::string("called a synchronizing CUDA operation: ") + what);
}

cudaError_t take_launch(cudaStream_t stream, std::function<cudaError_t()> launch, const void* parameters,
                        size_t bytes) {
    const int64_t given = reinterpret_cast<int64_t>(stream), current = current_stream(current_device());
    if (given != current) {
        refuse("a launch on stream " + std::to_string(given) + ", expected the current one, " +
               std::to_string(current));
    }
    std::vector<const void*> words(bytes / sizeof(void*));
    std::memcpy(words.data(), parameters, words.size() * sizeof(void*));
    std::erase_if(words, [](const void* word) { return device_of(word) < 0; });
    check_access(words);
    if (!is_captured(current_device())) return launch();
    record([launch] { TORCH_CHECK(launch() == cudaSuccess, cudaGetErrorString(cudaGetLastError())); }, words);
    return cudaSuccess;
}

namespace {

c10::Device on_cuda(int device) { return {c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)}; }

struct Allocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        void* memory = stand_in::allocate(bytes);
        return {memory, memory, &release, on_cuda(current_device())};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &release; }
    void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Allocator allocator;
REGISTER_ALLOCATOR(c10::DeviceType::CUDA, &allocator)

// Whatever came before an event, on any stream, is done when it is recorded.
struct Guard final : c10::impl::DeviceGuardImplInterface {
    static constexpr c10::DeviceType static_type = c10::DeviceType::CUDA;
    Guard() = default;
    explicit Guard(c10::DeviceType) {}

    c10::DeviceType type() const override { return static_type; }
    c10::DeviceIndex deviceCount() const noexcept override { return device_count; }
    c10::Device getDevice() const override { return on_cuda(current_device()); }
    void setDevice(c10::Device device) const override { set_device(device.index()); }
    void uncheckedSetDevice(c10::Device device) const noexcept override { set_device(device.index()); }
    c10::Device exchangeDevice(c10::Device device) const override {
        const c10::Device before = getDevice();
        setDevice(device);
        return before;
    }

    static c10::Stream stream(c10::Device device, int64_t number) {
        device = on_cuda(device.has_index() ? device.index() : current_device());
        return c10::Stream(c10::Stream::UNSAFE, device, number);
    }
    c10::Stream getStream(c10::Device device) const override {
        return stream(device, current_stream(device.has_index() ? device.index() : current_device()));
    }
    c10::Stream getDefaultStream(c10::Device device) const override { return stream(device, 0); }
    c10::Stream getNewStream(c10::Device device, int) const override { return stream(device, new_stream()); }
    c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
    c10::Stream exchangeStream(c10::Stream next) const override {
        return stream(next.device(), exchange_stream(next.device_index(), next.id()));
    }
    void* getStreamNativeHandle(c10::Stream stream) const override { return reinterpret_cast<void*>(stream.id()); }
    bool isStreamCapturing(const c10::Stream& stream) const override {
        return stream.id() == current_stream(stream.device_index()) && is_captured(stream.device_index());
    }
    bool queryStream(const c10::Stream&) const override {
        refuse_in_capture("cudaStreamQuery");
        return true;
    }
    void synchronizeStream(const c10::Stream&) const override { host_waits("cudaStreamSynchronize"); }
    void synchronizeDevice(c10::DeviceIndex) const override { host_waits("cudaDeviceSynchronize"); }

    void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
    void block(void*, const c10::Stream&) const override {}
    bool queryEvent(void*) const override {
        refuse_in_capture("cudaEventQuery");
        return true;
    }
    void synchronizeEvent(void*) const override { host_waits("cudaEventSynchronize"); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct Hooks final : at::CUDAHooksInterface {
    void init() const override {}
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasCUDA() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    int getNumGPUs() const override { return device_count; }
    c10::DeviceIndex deviceCount() const override { return device_count; }
    c10::DeviceIndex current_device() const override {
        return static_cast<c10::DeviceIndex>(stand_in::current_device());
    }
    c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
    void setCurrentDevice(c10::DeviceIndex device) const override { set_device(device); }
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
        const c10::DeviceIndex before = current_device();
        set_device(device);
        return before;
    }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override { return exchangeDevice(device); }
    c10::Device getDeviceFromPtr(void* address) const override { return on_cuda(device_of(address)); }
    // The operations are the CPU's, and so are their random numbers.
    const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
        return at::detail::getDefaultCPUGenerator();
    }
    at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};

// torch makes its hooks once, while it is imported; those of no CUDA become these, where they are.
static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));
const auto* const hooks = new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Hooks;

// The arguments of one call as the CPU sees them, and its results as the device does: on the same memory.
class Crossing {
  public:
    at::Tensor to_cpu(const at::Tensor& tensor) {
        if (!tensor.defined()) return tensor;
        for (const auto& [ours, theirs] : tensors) {
            if (ours.is_same(tensor)) return theirs;
        }
        if (tensor.is_cpu()) {
            storages.emplace_back(tensor.storage(), tensor.storage());
            tensors.emplace_back(tensor, tensor);
            return tensor;
        }
        tensors.emplace_back(tensor, like(tensor, to_cpu(tensor.storage()), c10::BackendComponent::CPUBit));
        return tensors.back().second;
    }

    c10::Storage to_cpu(const c10::Storage& storage) {
        for (const auto& [ours, theirs] : storages) {
            if (ours.is_alias_of(storage)) return theirs;
        }
        storages.emplace_back(storage, made(borrowed(storage), storage.nbytes(), c10::GetCPUAllocator()));
        return storages.back().second;
    }

    at::Tensor to_cuda(const at::Tensor& tensor) {
        if (!tensor.defined() || !tensor.is_cpu()) return tensor;
        for (const auto& [ours, theirs] : tensors) {
            if (theirs.is_same(tensor)) return ours;
        }
        return like(tensor, to_cuda(tensor.storage()), c10::BackendComponent::CUDABit);
    }

    c10::Storage to_cuda(const c10::Storage& storage) {
        for (const auto& [ours, theirs] : storages) {
            if (theirs.is_alias_of(storage)) return ours;
        }
        storages.emplace_back(made(moved(storage), storage.nbytes(), &allocator), storage);
        return storages.back().first;
    }

    // After the call: what has been resized, or set to other memory.
    void settle() {
        for (const auto& [ours, theirs] : storages) {
            if (ours.data() == theirs.data()) continue;
            ours.unsafeGetStorageImpl()->set_data_ptr(moved(theirs));
            ours.unsafeGetStorageImpl()->set_nbytes(theirs.nbytes());
        }
        for (const auto& [ours, theirs] : tensors) {
            c10::TensorImpl* impl = ours.unsafeGetTensorImpl();
            const c10::Storage storage = to_cuda(theirs.storage());
            if (!storage.is_alias_of(ours.storage())) impl->set_storage_keep_dtype(storage);
            if (ours.sizes() != theirs.sizes() || ours.strides() != theirs.strides() ||
                ours.storage_offset() != theirs.storage_offset()) {
                impl->set_sizes_and_strides(theirs.sizes(), theirs.strides(), theirs.storage_offset());
            }
        }
    }

    std::vector<const void*> touched() const {
        std::vector<const void*> found;
        for (const auto& [ours, theirs] : storages) {
            if (ours.device().is_cuda() && ours.data()) found.push_back(ours.data());
        }
        return found;
    }

  private:
    static c10::DataPtr borrowed(const c10::Storage& storage) {
        return {storage.mutable_data(), c10::Device(c10::DeviceType::CPU)};
    }

    // Memory that the CPU has allocated moves to the device, and is borrowed from there.
    static c10::DataPtr moved(const c10::Storage& theirs) {
        c10::DataPtr memory = allocator.allocate(theirs.nbytes());
        if (theirs.data()) {
            std::memcpy(memory.get(), theirs.data(), theirs.nbytes());
        } else if (theirs.nbytes()) {
            std::memset(memory.get(), 0, theirs.nbytes());  // autograd's zeros without memory
        }
        theirs.unsafeGetStorageImpl()->set_data_ptr({memory.get(), c10::Device(c10::DeviceType::CPU)});
        return memory;
    }

    static c10::Storage made(c10::DataPtr memory, size_t bytes, c10::Allocator* allocator) {
        return {c10::Storage::use_byte_size_t(), bytes, std::move(memory), allocator, true};
    }

    // As a view is made: what autograd and inference mode know of the tensor holds for the other as well.
    static at::Tensor like(const at::Tensor& tensor, c10::Storage storage, c10::BackendComponent backend) {
        const auto own = tensor.is_cuda() ? c10::BackendComponent::CUDABit : c10::BackendComponent::CPUBit;
        const auto keys = tensor.key_set().remove_backend(own) - c10::python_ks | c10::DispatchKeySet(backend);
        auto found =
            at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, std::move(storage), keys, tensor.dtype());
        found.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
        return found;
    }

    std::vector<std::pair<at::Tensor, at::Tensor>> tensors;
    std::vector<std::pair<c10::Storage, c10::Storage>> storages;
};

using Values = c10::ArrayRef<c10::IValue>;

std::vector<at::Tensor> tensors_of(const c10::IValue& value) {
    std::vector<at::Tensor> found;
    if (value.isTensor()) {
        found = {value.toTensor()};
    } else if (value.isTensorList()) {
        found = value.toTensorVector();
    } else if (value.isOptionalTensorList()) {
        for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList()) {
            if (tensor) found.push_back(*tensor);
        }
    }
    std::erase_if(found, [](const at::Tensor& tensor) { return !tensor.defined(); });
    return found;
}

template <class Change>
void change_tensors(c10::IValue& value, Change change) {
    if (value.isTensor()) {
        value = change(value.toTensor());
    } else if (value.isTensorList()) {
        c10::List<at::Tensor> changed;
        for (const at::Tensor& tensor : value.toTensorVector()) changed.push_back(change(tensor));
        value = changed;
    } else if (value.isOptionalTensorList()) {
        c10::List<std::optional<at::Tensor>> changed;
        for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList()) {
            changed.push_back(tensor ? std::optional(change(*tensor)) : std::nullopt);
        }
        value = changed;
    }
}

bool is_written(const c10::Argument& argument) { return argument.alias_info() && argument.alias_info()->isWrite(); }

// The device of a call; refuses tensors of several, as torch does. Waits where the host has to.
c10::Device device_of_call(const c10::FunctionSchema& schema, Values arguments) {
    static const std::set<std::string> indexes = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"};
    static const std::set<std::string> sized_by_data = {
        "aten::nonzero",  "aten::masked_select",    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
        "aten::bincount", "aten::repeat_interleave"};
    const bool copies = schema.name() == "aten::copy_", is_indexed = indexes.count(schema.name());
    std::optional<c10::Device> device;
    bool waits = sized_by_data.count(schema.name());
    for (const c10::IValue& value : arguments) {
        if (value.isDevice() && value.toDevice().is_cuda()) device = value.toDevice();
        for (const at::Tensor& tensor : tensors_of(value)) {
            if (tensor.is_cuda() && !device) device = tensor.device();
            waits |= is_indexed && value.isOptionalTensorList() && tensor.dtype() == at::kBool;
        }
    }
    if (!device || !device->has_index()) device = on_cuda(current_device());
    for (size_t i = 0; i < arguments.size(); ++i) {
        for (const at::Tensor& tensor : tensors_of(arguments[i])) {
            if (tensor.device() == *device) continue;
            const bool is_number = tensor.is_cpu() && tensor.dim() == 0 && !is_written(schema.arguments()[i]);
            const bool is_index = tensor.is_cpu() && is_indexed && arguments[i].isOptionalTensorList();
            if (!copies && !is_number && !is_index) {
                refuse("Expected all tensors to be on the same device, but got " + schema.arguments()[i].name() +
                       " is on " + tensor.device().str() + ", different from other tensors on " + device->str() +
                       " (in " + schema.name() + ")");
            }
            waits |= tensor.is_cpu() && !is_number;
            waits |= copies && tensor.is_cpu();
        }
    }
    for (const c10::Argument& result : schema.returns()) {
        const c10::TypeKind kind = result.type()->kind();
        waits |= kind != c10::TypeKind::TensorType && kind != c10::TypeKind::ListType;
    }
    if (waits) host_waits(schema.name().c_str());
    return *device;
}

// The CPU's operation on the same memory; captured, it runs in passing, for the shapes of its results.
void call_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const c10::FunctionSchema& schema = op.schema();
    const size_t count = schema.arguments().size(), first = stack->size() - count;
    const c10::Device device = device_of_call(schema, Values(*stack).slice(first));
    const OnDevice here(device.index());
    const bool captured = is_captured(device.index());
    Crossing crossing;
    bool writes = false;
    for (size_t i = 0; i < count; ++i) {
        c10::IValue& value = (*stack)[first + i];
        if (is_written(schema.arguments()[i])) {
            writes = true;
            for (const at::Tensor& tensor : tensors_of(value)) keep_for_capture(tensor.storage().data());
        }
        change_tensors(value, [&](const at::Tensor& tensor) { return crossing.to_cpu(tensor); });
        if (value.isStorage()) value = crossing.to_cpu(value.toStorage());
        if (value.isDevice()) value = c10::Device(c10::DeviceType::CPU);
    }
    const std::vector<const void*> given = crossing.touched();
    std::vector<const void*> touched = given;
    // A copy is what may go from one device to another.
    if (schema.name() == "aten::copy_") std::erase_if(touched, [&](auto p) { return device_of(p) != device.index(); });
    check_access(touched);
    const torch::jit::Stack arguments(stack->begin() + first, stack->end());
    at::Generator random = at::detail::getDefaultCPUGenerator();
    const at::Tensor not_drawn = captured ? random.get_state() : at::Tensor();
    op.callBoxed(stack);
    if (captured) random.set_state(not_drawn);  // a capture draws nothing
    crossing.settle();
    std::vector<std::pair<size_t, void*>> made;  // bytes of new results, and where they lie
    for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i) {
        change_tensors((*stack)[i], [&](const at::Tensor& tensor) {
            const at::Tensor ours = crossing.to_cuda(tensor);
            void* memory = ours.is_cuda() ? ours.storage().mutable_data() : nullptr;
            const bool is_new = memory && std::find(given.begin(), given.end(), memory) == given.end();
            made.emplace_back(is_new ? ours.storage().nbytes() : 0, memory);
            return ours;
        });
    }
    const bool makes = std::any_of(made.begin(), made.end(), [](const auto& result) { return result.first > 0; });
    if (!captured || !(writes || makes)) return;
    record(
        [op, arguments, made] {
            const c10::impl::ExcludeDispatchKeyGuard plain(c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                                                           c10::python_ks);
            torch::jit::Stack again = arguments;
            op.callBoxed(again);
            auto result = made.begin();
            for (c10::IValue& value : again) {
                for (const at::Tensor& tensor : tensors_of(value)) {
                    const auto [bytes, memory] = *result++;
                    if (bytes) std::memcpy(memory, tensor.storage().data(), bytes);
                }
            }
        },
        crossing.touched());
}

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
    const c10::OptionalDeviceGuard here(device);
    return at::detail::empty_generic_symint(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                            c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
    const c10::OptionalDeviceGuard here(device);
    return at::detail::empty_strided_symint_generic(
        size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype));
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&call_on_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
    m.impl("empty.memory_format", &empty);
    m.impl("empty_strided", &empty_strided);
    // A composition of torch's asks for this kernel of the device.
    m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&call_on_cpu>());
}

}  // namespace
}  // namespace stand_in

// What the ops ask for their stream; of all that a CUDA torch exports, they need this alone.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
    *stream = reinterpret_cast<void*>(stand_in::current_stream(device));
    return AOTI_TORCH_SUCCESS;
}
