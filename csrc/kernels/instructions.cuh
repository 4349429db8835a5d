// What depends on the architecture, and what a CPU has no counterpart of: one small function for each instruction.
// Nothing else in this folder does, so the emulator (csrc/emulator) has its own version of the first part of this file,
// and compiles everything else as it is.
#pragma once

#include "types.cuh"

#ifndef __CUDACC__
#include "../emulator/instructions.h"
#else

namespace scratchcuda {

// PTX manual: cp.async, since sm_80. Copies 4, 8 or 16 bytes, aligned to as many, from global to shared memory in the
// background. Only the first `read` bytes are read, the others become zero.
template <int bytes>
__device__ void cp_async(void* shared, const void* global, int read) {
#if __CUDA_ARCH__ >= 800
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    if constexpr (bytes == 16) {  // .cg: past the first-level cache, where nobody would ask for it again
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(read) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(bytes), "r"(read)
                     : "memory");
    }
#endif
}

// Closes a group of this thread's copies.
__device__ inline void cp_async_commit_group() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `newest` of this thread's groups are still under way.
template <int newest>
__device__ void cp_async_wait_group() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
#endif
}

// PTX manual: griddepcontrol, since sm_90. For launches that may begin before the one before them in the stream has
// ended (launch.cuh): `launch_dependents` lets the next one begin, once all blocks have come to it, and `wait` waits
// until the one before has ended and its memory can be read. In other launches they do nothing.
__device__ inline void griddepcontrol_launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void griddepcontrol_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// All shared memory of a kernel comes from here, so that the emulator can watch it: take() hands out the next piece of
// what the launch asked for, aligned to 16 bytes, to all threads of a block alike.
class SharedMemory {
  public:
    template <class T>
    __device__ T* take(int count) {
        extern __shared__ uint4 scratchcuda_shared_memory[];
        T* piece = reinterpret_cast<T*>(reinterpret_cast<char*>(scratchcuda_shared_memory) + taken);
        taken += (count * sizeof(T) + 15) / 16 * 16;
        return piece;
    }

    // Everything taken is free to be taken again, after a barrier.
    __device__ void release() { taken = 0; }

  private:
    size_t taken = 0;
};

}  // namespace scratchcuda

#endif

namespace scratchcuda {

// How every kernel begins, before it touches global memory: neighbours in a stream may overlap up to here.
__device__ inline void overlap_launches() {
    griddepcontrol_launch_dependents();
    griddepcontrol_wait();
}

// Copies `count` elements, 16 bytes or one element, from global to shared memory, in the background where the
// architecture can: until cp_async_wait_group says otherwise they are not there. Both sides are aligned to that many
// bytes. Only the first `valid` elements are read, the others become zero.
template <int count, class T>
__device__ void copy_async(T* shared, const T* global, int valid) {
#if __CUDA_ARCH__ >= 800
    if constexpr (count * sizeof(T) >= 4) {
        cp_async<count * sizeof(T)>(shared, global, valid * static_cast<int>(sizeof(T)));
        return;
    }
#endif
    using Whole = Pack<T, count>;
    Whole values{};
    if (valid == count) {
        values = *reinterpret_cast<const Whole*>(global);
    } else {
#pragma unroll
        for (int e = 0; e < count; ++e) {
            if (e < valid) values.element[e] = global[e];
        }
    }
    *reinterpret_cast<Whole*>(shared) = values;
}

}  // namespace scratchcuda
