// The emulator's version of csrc/kernels/instructions.cuh, after the PTX manual, as strict as it allows.
#pragma once

#include "cuda_runtime.h"

namespace emulator {

struct Copy {
    void* shared;
    const void* global;
    int bytes, read;
};

void begin_copy(const Copy& copy);
void commit_copies();
// A copy that has to land now, while more than `newest` groups are under way; false if there is none.
bool next_landing(int newest, Copy& copy);

// A thread of a launch that may overlap the one before it has to come here.
void wait_for_grid_before();

void* take_shared(int generation, int piece, size_t bytes);

}  // namespace emulator

namespace scratchcuda {

// It lands as late as the waits allow. Until then its destination is NaN, whatever was there before.
template <int bytes>
void cp_async(void* shared, const void* global, int read) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "PTX knows no other size");
    emulator::begin_copy({shared, global, bytes, read});
    std::memset(shared, 0xff, bytes);
}

inline void cp_async_commit_group() { emulator::commit_copies(); }

template <int newest>
void cp_async_wait_group() {
    emulator::Copy copy;
    while (emulator::next_landing(newest, copy)) {
        if (copy.read) std::memcpy(copy.shared, copy.global, copy.read);
        std::memset(static_cast<char*>(copy.shared) + copy.read, 0, copy.bytes - copy.read);
    }
}

inline void griddepcontrol_launch_dependents() {}
inline void griddepcontrol_wait() { emulator::wait_for_grid_before(); }

// Each piece is filled with NaN and lies between red zones.
class SharedMemory {
  public:
    template <class T>
    T* take(int count) {
        return static_cast<T*>(emulator::take_shared(generation, pieces++, count * sizeof(T)));
    }

    void release() { ++generation, pieces = 0; }

  private:
    int generation = 0, pieces = 0;
};

}  // namespace scratchcuda
