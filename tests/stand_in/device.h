// Two devices made of host memory: their current streams, their memory, and the graphs captured on them. Work is done
// at once, in the order in which it is given, unless a capture records it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace stand_in {

constexpr int device_count = 2;

[[noreturn]] void refuse(const std::string& what);  // and the capture that is under way, if any, is lost

int current_device();
void set_device(int device);

// Of this thread. A stream is a number; 0 is the default stream of every device.
int64_t current_stream(int device);
int64_t exchange_stream(int device, int64_t stream);
int64_t new_stream();

// Makes a device current while it lives.
struct OnDevice {
    explicit OnDevice(int device) { set_device(device); }
    OnDevice(const OnDevice&) = delete;
    ~OnDevice() { set_device(before); }
    const int before = current_device();
};

// Memory of the current device: of the graph's pool while its current stream is captured. NaN before it is first
// written, and again once it is released.
void* allocate(size_t bytes);
void release(void* memory);
// The device of the memory that this address lies in, -1 if it is of none.
int device_of(const void* address);

struct Memory {
    size_t now, peak;
};
Memory& memory_of(int device);

struct Pool;
int64_t new_pool();
std::vector<size_t> segments(int64_t pool);

// The host waits for the device here, or copies between the two: nothing that a capture could record.
void refuse_in_capture(const char* what);

// Refuses work on the current device that touches memory of another, or has no place in the capture under way.
void check_access(const std::vector<const void*>& touched);

// Whether work on the current stream of this device is recorded, not done.
bool is_captured(int device);
void record(std::function<void()> work, const std::vector<const void*>& touched);
// What a capture does in passing, to know its shapes, is undone at its end.
void keep_for_capture(const void* memory);

struct Graph {
    ~Graph();
    void begin(int64_t pool);  // 0 for one of its own
    void end();
    void replay() const;
    void reset();

    struct Work {
        std::function<void()> run;
        std::vector<const void*> touched;
    };
    int device = 0;
    int64_t stream = 0, pool_number = 0;
    std::shared_ptr<Pool> pool;
    std::vector<Work> recorded;
    std::map<void*, std::vector<char>> kept;
    std::string fault;  // the first of a capture
};

}  // namespace stand_in
