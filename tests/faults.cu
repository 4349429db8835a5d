// Kernels that are wrong on purpose, one for each kind of fault that the emulator has to catch, and kernels that are
// right and show what it emulates. Each writes to `out`, of `size` floats; run_fault launches the one of that name.
#include <cooperative_groups.h>

#include <cstring>
#include <vector>

#include "../csrc/kernels/instructions.cuh"
#include "../csrc/kernels/launch.cuh"

using namespace scratchcuda;

constexpr unsigned all = 0xffffffff;

// ---- memory ----

__global__ void global_out_of_bounds(float* out, int size) {
    if (threadIdx.x == 0) out[size] = 1;
}

__global__ void shared_out_of_bounds(float* out, int) {
    SharedMemory memory;
    float* piece = memory.take<float>(32);
    memory.take<float>(32);
    piece[threadIdx.x + 1] = 1;  // the last one falls between the pieces
    out[threadIdx.x] = 0;
}

__global__ void more_shared_than_launched(float* out, int) {
    SharedMemory memory;
    out[threadIdx.x] = memory.take<float>(1000)[0];
}

__global__ void uninitialised_shared(float* out, int) {
    SharedMemory memory;
    out[threadIdx.x] = memory.take<float>(32)[threadIdx.x];
}

__global__ void shared_after_release(float* out, int) {
    SharedMemory memory;
    memory.take<float>(32)[threadIdx.x] = 1;
    __syncthreads();
    memory.release();
    out[threadIdx.x] = memory.take<float>(32)[threadIdx.x];
}

__global__ void misaligned_access(float* out, int) { *reinterpret_cast<float4*>(out + 1) = float4{1, 1, 1, 1}; }

__global__ void undefined_arithmetic(float* out, int size) {
    out[threadIdx.x] = float(size * 0x7fffff0);  // signed overflow
}

// ---- asynchronous copies ----

__global__ void copy_not_awaited(float* out, int) {
    SharedMemory memory;
    float* piece = memory.take<float>(32);
    copy_async<1>(piece + threadIdx.x, out + threadIdx.x, 1);
    cp_async_commit_group();
    cp_async_wait_group<1>();  // allows one group, which is this one, to be under way
    out[threadIdx.x] = piece[threadIdx.x];
}

__global__ void copy_awaited(float* out, int) {
    SharedMemory memory;
    float* piece = memory.take<float>(128);
    out[threadIdx.x] = float(threadIdx.x + 1);
    __syncthreads();
    copy_async<4>(piece + 4 * threadIdx.x, out, 3);
    cp_async_commit_group();
    cp_async_wait_group<0>();
    out[64 + threadIdx.x] = piece[4 * threadIdx.x + threadIdx.x % 4];
}

__global__ void misaligned_copy(float* out, int) {
    SharedMemory memory;
    cp_async<16>(memory.take<float>(32), out + 1, 16);
}

__global__ void copy_to_global(float* out, int) { cp_async<4>(out, out + 8, 4); }

// ---- barriers ----

__global__ void barrier_after_return(float* out, int) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

__global__ void barrier_in_a_branch(float* out, int) {
    if (threadIdx.x < 5) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}

__global__ void grid_barrier(float* out, int) {
    out[blockIdx.x] = 1;
    cooperative_groups::this_grid().sync();
    float sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += out[b];
    cooperative_groups::this_grid().sync();
    out[blockIdx.x] = sum;
}

__global__ void too_many_to_meet(float*, int) { cooperative_groups::this_grid().sync(); }

// ---- warps ----

__global__ void shuffle_from_an_inactive_lane(float* out, int) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0xffff, 1.f, 8);
}

__global__ void shuffle_outside_its_mask(float* out, int) { out[threadIdx.x] = __shfl_xor_sync(0xffff, 1.f, 1); }

__global__ void shuffle_without_all(float* out, int) {
    if (threadIdx.x != 3) out[threadIdx.x] = __shfl_xor_sync(all, 1.f, 1);
}

__global__ void shuffles(float* out, int) {
    const float lane = float(threadIdx.x);
    float* to = out + 8 * threadIdx.x;
    to[0] = __shfl_sync(all, lane, 35);
    to[1] = __shfl_sync(all, lane, 5, 8);
    to[2] = __shfl_up_sync(all, lane, 3);
    to[3] = __shfl_down_sync(all, lane, 3, 16);
    to[4] = __shfl_xor_sync(all, lane, 5);
    to[5] = float(__ballot_sync(all, threadIdx.x % 3 == 0) % 1024);
    to[6] = float(__any_sync(all, threadIdx.x == 9) + 2 * __all_sync(all, threadIdx.x < 31));
    if (threadIdx.x < 16) {  // half of a warp
        __syncwarp(0xffff);
        to[7] = __shfl_xor_sync(0xffff, lane, 8);
    }
}

__global__ void atomics(float* out, int) {
    int* integers = reinterpret_cast<int*>(out);
    atomicAdd(out, 1);
    atomicMax(integers + 1, int(threadIdx.x));
    atomicMin(integers + 2, -int(threadIdx.x));
    atomicCAS(integers + 3, 0, 7);
    atomicExch(out + 4, 9.f);
}

__global__ void vote_without_all(float* out, int) {
    if (threadIdx.x != 3) out[threadIdx.x] = float(__ballot_sync(all, 1));
}

__global__ void vote_meets_shuffle(float* out, int) {
    out[threadIdx.x] = threadIdx.x % 2 ? float(__ballot_sync(all, 1)) : __shfl_xor_sync(all, 1.f, 1);
}

// ---- races ----

__global__ void race_within_a_block(float* out, int) {
    SharedMemory memory;
    float* piece = memory.take<float>(32);
    piece[threadIdx.x] = 1;
    out[threadIdx.x] = piece[31 - threadIdx.x];  // of another thread, with no barrier between
}

__global__ void no_race_within_a_block(float* out, int) {
    SharedMemory memory;
    float* piece = memory.take<float>(32);
    piece[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = piece[31 - threadIdx.x];
}

__global__ void race_through_a_shuffle(float* out, int) {
    out[threadIdx.x] = 1;
    __shfl_xor_sync(all, 1.f, 1);  // orders no memory, as __syncwarp would
    out[64 + threadIdx.x] = out[threadIdx.x ^ 1];
}

__global__ void no_race_after_syncwarp(float* out, int) {
    out[threadIdx.x] = 1;
    __syncwarp();
    out[64 + threadIdx.x] = out[threadIdx.x ^ 1];
}

__global__ void race_between_two_syncwarps(float* out, int) {
    __syncwarp();
    out[threadIdx.x] = 1;
    out[64 + threadIdx.x] = out[threadIdx.x ^ 1];
    __syncwarp();
}

__global__ void race_on_one_element(float* out, int) { out[0] = float(threadIdx.x); }

__global__ void race_between_blocks(float* out, int) { out[0] = float(blockIdx.x); }

__global__ void race_with_a_copy(float* out, int) {
    SharedMemory memory;
    float* piece = memory.take<float>(32);
    copy_async<1>(piece + threadIdx.x, out + threadIdx.x, 1);
    cp_async_commit_group();
    cp_async_wait_group<0>();
    out[64 + threadIdx.x] = piece[31 - threadIdx.x];  // this thread waited for its own copies alone
}

struct Case {
    const char* name;
    void (*kernel)(float*, int);
    unsigned blocks;
};

const Case cases[] = {
#define CASE(kernel, blocks) {#kernel, kernel, blocks}
    CASE(global_out_of_bounds, 1),
    CASE(shared_out_of_bounds, 1),
    CASE(more_shared_than_launched, 1),
    CASE(uninitialised_shared, 1),
    CASE(shared_after_release, 1),
    CASE(misaligned_access, 1),
    CASE(undefined_arithmetic, 1),
    CASE(copy_not_awaited, 1),
    CASE(copy_awaited, 1),
    CASE(misaligned_copy, 1),
    CASE(copy_to_global, 1),
    CASE(barrier_after_return, 1),
    CASE(barrier_in_a_branch, 1),
    CASE(grid_barrier, 4),
    CASE(too_many_to_meet, 300),
    CASE(shuffle_from_an_inactive_lane, 1),
    CASE(shuffle_outside_its_mask, 1),
    CASE(shuffle_without_all, 1),
    CASE(shuffles, 1),
    CASE(atomics, 2),
    CASE(vote_without_all, 1),
    CASE(vote_meets_shuffle, 1),
    CASE(race_between_two_syncwarps, 1),
    CASE(race_on_one_element, 1),
    CASE(race_within_a_block, 1),
    CASE(no_race_within_a_block, 1),
    CASE(race_through_a_shuffle, 1),
    CASE(no_race_after_syncwarp, 1),
    CASE(race_between_blocks, 8),
    CASE(race_with_a_copy, 1),
};

extern "C" {

// `size` floats of out, all zero before; 32 threads a block. `cooperative` as in cudaLaunchAttributeCooperative.
cudaError_t run_fault(const char* name, float* out, int size, int cooperative) {
    std::vector<float> memory(size);
    cudaError_t error = cudaErrorInvalidValue;
    for (const Case& c : cases) {
        if (std::strcmp(c.name, name) != 0) continue;
        cudaLaunchAttribute attribute{cudaLaunchAttributeCooperative, {cooperative}};
        const cudaLaunchConfig_t config{{c.blocks}, {32}, 1024, nullptr, &attribute, 1};
        error = cudaLaunchKernelEx(&config, c.kernel, memory.data(), size);
    }
    std::copy(memory.begin(), memory.end(), out);
    return error;
}

// A launch of this shape, on this stream, of a kernel that does nothing.
__global__ void nothing(int) {}
cudaError_t run_shape(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, size_t shared_bytes,
                      cudaStream_t stream) {
    if (shared_bytes > shared_bytes_without_asking) {
        const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
        if (const cudaError_t error = cudaFuncSetAttribute((const void*)nothing, attribute, int(shared_bytes)))
            return error;
    }
    const cudaLaunchConfig_t config{{gx, gy, gz}, {bx, by, bz}, shared_bytes, stream, nullptr, 0};
    return cudaLaunchKernelEx(&config, nothing, 0);
}

__global__ void another(int) {}
cudaError_t run_unasked(int shared_bytes) {
    const cudaLaunchConfig_t config{{1}, {32}, size_t(shared_bytes), nullptr, nullptr, 0};
    return cudaLaunchKernelEx(&config, another, 0);
}
}
