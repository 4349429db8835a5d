#include "device.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace stand_in {

// The memory of graphs: it stays as long as one of them, or a tensor, has some of it.
struct Pool {
    ~Pool();
    std::multimap<size_t, void*> released;
    std::vector<size_t> sizes;
};

namespace {

constexpr size_t alignment = 512;  // torch's own

struct Block {
    size_t bytes;
    int device;
    std::shared_ptr<Pool> pool;  // none of a tensor outside of graphs
    bool is_released;
};

std::recursive_mutex one_at_a_time;  // autograd has a thread for each device
// They outlive all tensors.
auto& blocks = *new std::map<const void*, Block>;
auto& pools = *new std::map<int64_t, std::weak_ptr<Pool>>;
Memory memory[device_count];
Graph* capturing = nullptr;
int64_t numbers = 0;  // of streams and pools
thread_local int64_t streams[device_count];

std::map<const void*, Block>::iterator block_of(const void* address) {
    auto after = blocks.upper_bound(address);
    if (after == blocks.begin()) return blocks.end();
    const auto found = std::prev(after);
    return address < static_cast<const char*>(found->first) + found->second.bytes ? found : blocks.end();
}

std::string name(int device, int64_t stream) {
    return "stream " + std::to_string(stream) + " of cuda:" + std::to_string(device);
}

}  // namespace

Pool::~Pool() {
    for (const auto& [bytes, address] : released) {
        blocks.erase(address);
        std::free(address);
    }
}

void refuse(const std::string& what) {
    if (capturing && capturing->fault.empty()) capturing->fault = what;
    throw std::runtime_error(what);
}

int current_device() {
    int device = 0;
    cudaGetDevice(&device);
    return device;
}

void set_device(int device) {
    if (cudaSetDevice(device)) refuse("there is no cuda:" + std::to_string(device) + ", expected cuda:0 or cuda:1");
}

int64_t current_stream(int device) { return streams[device]; }
int64_t exchange_stream(int device, int64_t stream) { return std::exchange(streams[device], stream); }

int64_t new_stream() {
    const std::lock_guard lock(one_at_a_time);
    return ++numbers;
}

Memory& memory_of(int device) { return memory[device]; }

void* allocate(size_t bytes) {
    if (bytes == 0) return nullptr;
    const std::lock_guard lock(one_at_a_time);
    const int device = current_device();
    bytes = (bytes + alignment - 1) / alignment * alignment;
    void* address = nullptr;
    std::shared_ptr<Pool> pool;
    if (capturing) {
        if (!is_captured(device)) {
            refuse("cudaMalloc for " + name(device, streams[device]) + " is not permitted when " +
                   name(capturing->device, capturing->stream) + " is capturing");
        }
        pool = capturing->pool;
        if (const auto again = pool->released.find(bytes); again != pool->released.end()) {
            address = again->second;
            pool->released.erase(again);
        } else {
            pool->sizes.push_back(bytes);
        }
    }
    if (!address) address = std::aligned_alloc(alignment, bytes);
    if (!address) refuse("CUDA out of memory: " + std::to_string(bytes) + " bytes");
    std::memset(address, 0xff, bytes);
    blocks[address] = {bytes, device, std::move(pool), false};
    memory[device].now += bytes;
    memory[device].peak = std::max(memory[device].peak, memory[device].now);
    return address;
}

void release(void* address) {
    if (!address) return;
    const std::lock_guard lock(one_at_a_time);
    const auto found = blocks.find(address);
    Block& block = found->second;
    std::memset(address, 0xff, block.bytes);
    memory[block.device].now -= block.bytes;
    if (const std::shared_ptr<Pool> pool = std::move(block.pool)) {
        block.is_released = true;
        pool->released.emplace(block.bytes, address);
    } else {
        blocks.erase(found);
        std::free(address);
    }
}

int device_of(const void* address) {
    const std::lock_guard lock(one_at_a_time);
    const auto found = block_of(address);
    return found == blocks.end() ? -1 : found->second.device;
}

int64_t new_pool() {
    const std::lock_guard lock(one_at_a_time);
    return ++numbers;
}

std::vector<size_t> segments(int64_t number) {
    const std::lock_guard lock(one_at_a_time);
    const std::shared_ptr<Pool> pool = pools[number].lock();
    return pool ? pool->sizes : std::vector<size_t>();
}

void refuse_in_capture(const char* what) {
    const std::lock_guard lock(one_at_a_time);
    if (capturing) refuse(std::string(what) + ": operation not permitted when stream is capturing");
}

bool is_captured(int device) {
    const std::lock_guard lock(one_at_a_time);
    return capturing && capturing->device == device && capturing->stream == streams[device];
}

void check_access(const std::vector<const void*>& touched) {
    const std::lock_guard lock(one_at_a_time);
    const int device = current_device();
    for (const void* address : touched) {
        if (const int owner = device_of(address); owner >= 0 && owner != device) {
            refuse("an illegal memory access: cuda:" + std::to_string(device) +
                   " reaches for memory of cuda:" + std::to_string(owner));
        }
    }
    if (capturing && !is_captured(device)) {
        refuse("work on " + name(device, streams[device]) + " is not permitted when " +
               name(capturing->device, capturing->stream) + " is capturing");
    }
}

void record(std::function<void()> work, const std::vector<const void*>& touched) {
    const std::lock_guard lock(one_at_a_time);
    capturing->recorded.push_back({std::move(work), touched});
}

void keep_for_capture(const void* address) {
    const std::lock_guard lock(one_at_a_time);
    const auto found = block_of(address);
    if (!capturing || found == blocks.end() || found->second.pool == capturing->pool) return;
    const char* begin = static_cast<const char*>(found->first);
    capturing->kept.try_emplace(const_cast<char*>(begin), begin, begin + found->second.bytes);
}

Graph::~Graph() { reset(); }

void Graph::begin(int64_t number) {
    const std::lock_guard lock(one_at_a_time);
    if (capturing) refuse("another capture is under way");
    const int here = current_device();
    if (streams[here] == 0) refuse("CUDA graphs must be captured on a non-default stream");
    if (pool) refuse("this graph has been captured already");
    device = here;
    stream = streams[here];
    pool_number = number ? number : ++numbers;
    pool = pools[pool_number].lock();
    if (!pool) pools[pool_number] = pool = std::make_shared<Pool>();
    capturing = this;
}

void Graph::end() {
    const std::lock_guard lock(one_at_a_time);
    if (capturing != this) refuse("this graph is not being captured");
    capturing = nullptr;
    for (const auto& [address, bytes] : kept) {
        if (blocks.count(address)) std::memcpy(address, bytes.data(), bytes.size());
    }
    kept.clear();
    if (!fault.empty()) {
        const std::string first = fault;
        reset();
        refuse("operation failed due to a previous error during capture: " + first);
    }
}

void Graph::replay() const {
    if (!pool || capturing == this) refuse("this graph has not been captured");
    refuse_in_capture("cudaGraphLaunch");
    const OnDevice here(device);
    for (const Work& work : recorded) {
        for (const void* address : work.touched) {
            if (device_of(address) < 0) refuse("an illegal memory access: a replay reaches for released memory");
        }
        work.run();
    }
}

void Graph::reset() {
    const std::lock_guard lock(one_at_a_time);
    if (capturing == this) capturing = nullptr;
    recorded.clear();
    pool.reset();
    fault.clear();
}

}  // namespace stand_in
