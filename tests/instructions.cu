// Every instruction that the emulator has a version of its own of, in a small kernel of one block, for the comparison
// with a GPU bit by bit. run_instruction launches the one of that name on `in`, of `count` elements;
// test_instructions.py says what each writes to `out`.
#include <cstring>
#include <type_traits>

#include "../csrc/kernels/instructions.cuh"
#include "../csrc/kernels/launch.cuh"
#include "../csrc/kernels/reduce.cuh"

using namespace scratchcuda;

constexpr int threads = 64;              // two warps
constexpr size_t shared_bytes = 55'008;  // what `pieces` takes at most: one byte less is an error in the emulator

// Calls f(i) for every i below `count`, each in a thread of the block.
template <class F>
__device__ void each(int count, F f) {
    for (int i = threadIdx.x; i < count; i += threads) f(i);
}

// ---- memory ----

// `count` elements in one copy, of which each row reads one more than the row before it, from none to all. A row is
// `count` elements to be overwritten, then as many to copy. T of cp_async, which counts bytes, is char.
template <class T, int count>
__global__ void copy(const T* in, T* out, int size) {
    SharedMemory memory;
    T* shared = memory.take<T>(2 * count * (count + 1));
    each(size, [=](int i) { shared[i] = in[i]; });
    __syncthreads();
    each(count + 1, [=](int row) {
        T* to = shared + 2 * count * row;
        const T* from = in + 2 * count * row + count;
        if constexpr (std::is_same_v<T, char>) {
            cp_async<count>(to, from, row);
        } else {
            copy_async<count>(to, from, row);
        }
    });
    cp_async_commit_group();
    cp_async_wait_group<0>();
    __syncthreads();
    each(size, [=](int i) { out[i] = shared[i]; });
}

// A pipeline in which `newest` groups are under way while the one before them is read, by other threads than copied it.
// Its stage is then another group's. The groups are of 0, 1 and 2 copies by each thread, in turns.
template <int newest>
__global__ void groups(const float* in, float* out, int count) {
    constexpr int most = 2 * threads;
    SharedMemory memory;
    float* stages = memory.take<float>((newest + 1) * most);
    const auto stage = [=](int group) { return stages + group % (newest + 1) * most; };
    for (int group = 0; group < count / most + newest; ++group) {
        if (group < count / most) {
            each(group % 3 * threads, [=](int i) { copy_async<1>(stage(group) + i, in + group * most + i, 1); });
        }
        cp_async_commit_group();
        cp_async_wait_group<newest>();
        __syncthreads();
        if (const int done = group - newest; done >= 0) {
            const int copied = done % 3 * threads;
            each(copied, [=](int i) { out[done * most + i] = stage(done)[copied - 1 - i]; });
        }
        __syncthreads();
    }
}

template <class T>
__device__ T* take_filled(SharedMemory& memory, const int* in, int count) {
    T* piece = memory.take<T>(count);
    each(count, [=](int i) { piece[i] = T(in[i]); });
    return piece;
}

// Takes three pieces of as many elements and reads them when all are filled, then which of their addresses' last four
// bits are set. Releases them and does the same with fewer.
__global__ void pieces(const int* in, int* out, int count) {
    SharedMemory memory;
    for (; count > 0; count /= 7) {
        const char* chars = take_filled<char>(memory, in, count);
        const double* doubles = take_filled<double>(memory, in, count);
        const short* shorts = take_filled<short>(memory, in, count);
        __syncthreads();
        each(count, [=](int i) {
            out[i] = chars[i];
            out[count + i] = int(doubles[i]);
            out[2 * count + i] = shorts[i];
        });
        out += 3 * count;
        *out++ = (uintptr_t(chars) | uintptr_t(doubles) | uintptr_t(shorts)) % 16;
        __syncthreads();
        memory.release();
    }
}

// Turns the elements of each access around.
template <class T>
__global__ void packs(const T* in, T* out, int count) {
    constexpr int width = per_access<T>;
    using Whole = Pack<T, width>;
    each(count / width, [=](int i) {
        const Whole whole = reinterpret_cast<const Whole*>(in)[i];
        Whole turned;
        for (int e = 0; e < width; ++e) turned.element[e] = whole.element[width - 1 - e];
        reinterpret_cast<Whole*>(out)[i] = turned;
    });
}

// ---- conversions and limits ----

template <class T>
__global__ void widened(const T* in, float* out, int count) {
    each(count, [=](int i) { out[i] = widen(in[i]); });
}

template <class T>
__global__ void narrowed(const float* in, T* out, int count) {
    each(count, [=](int i) { out[i] = narrow<T>(in[i]); });
}

template <class A>
__global__ void limits(const A*, A* out, int) {
    out[0] = infinity<A>();
    out[1] = lowest<A>();
}

// ---- warps ----

// Every width with steps beyond the warp, in the four ways.
template <class T>
__global__ void shuffles(const T* in, T* out, int) {
    const T value = in[threadIdx.x];
    out += threadIdx.x;
    for (int width = 1; width <= warp; width *= 2) {
        for (int step = 0; step < 40; ++step, out += 4 * threads) {
            out[0] = __shfl_sync(all_lanes, value, step, width);
            out[threads] = __shfl_up_sync(all_lanes, value, step, width);
            out[2 * threads] = __shfl_down_sync(all_lanes, value, step, width);
            out[3 * threads] = __shfl_xor_sync(all_lanes, value, step, width);
        }
    }
}

// On each bit of the thread's word, among all lanes, every second one, every fourth and so on, and a lane alone.
__global__ void votes(const unsigned* in, unsigned* out, int) {
    const unsigned word = in[threadIdx.x];
    out += threadIdx.x;
    for (int apart = 1; apart <= warp; apart *= 2) {
        unsigned mask = 0;
        for (int lane = threadIdx.x % apart; lane < warp; lane += apart) mask |= 1u << lane;
        for (int bit = 0; bit < 32; ++bit, out += 3 * threads) {
            const int vote = word >> bit & 1;
            out[0] = __ballot_sync(mask, vote);
            out[threads] = __any_sync(mask, vote) != 0;
            out[2 * threads] = __all_sync(mask, vote) != 0;
        }
    }
}

// Over the block, then over each of its warps.
template <class A, class F>
__global__ void reduced(const A* in, A* out, int) {
    SharedMemory memory;
    A* shared = memory.take<A>(threads / warp);
    out[threadIdx.x] = reduce<threads>(in[threadIdx.x], F{}, shared);
    out[threads + threadIdx.x] = reduce<warp>(in[threadIdx.x], F{}, shared);
}

// ---- their launches ----

template <auto kernel>
struct Run;
template <class In, class Out, void (*kernel)(const In*, Out*, int)>
struct Run<kernel> {
    static cudaError_t run(const void* in, void* out, int count) {
        return launch<kernel, threads, shared_bytes>(1, 1, nullptr, static_cast<const In*>(in), static_cast<Out*>(out),
                                                     count);
    }
};

struct Case {
    const char* name;
    cudaError_t (*run)(const void* in, void* out, int count);
};

const Case cases[] = {
#define CASE(...) {#__VA_ARGS__, Run<__VA_ARGS__>::run}
    CASE(copy<char, 4>),
    CASE(copy<char, 8>),
    CASE(copy<char, 16>),
    CASE(copy<double, 1>),
    CASE(copy<double, 2>),
    CASE(copy<float, 1>),
    CASE(copy<float, 4>),
    CASE(copy<__half, 1>),
    CASE(copy<__half, 8>),
    CASE(copy<__nv_bfloat16, 1>),
    CASE(copy<__nv_bfloat16, 8>),
    CASE(groups<0>),
    CASE(groups<1>),
    CASE(groups<2>),
    CASE(groups<3>),
    CASE(pieces),
    CASE(packs<double>),
    CASE(packs<float>),
    CASE(packs<__half>),
    CASE(packs<__nv_bfloat16>),
    CASE(widened<__half>),
    CASE(widened<__nv_bfloat16>),
    CASE(narrowed<__half>),
    CASE(narrowed<__nv_bfloat16>),
    CASE(limits<float>),
    CASE(limits<double>),
    CASE(shuffles<double>),
    CASE(shuffles<float>),
    CASE(shuffles<__half>),
    CASE(shuffles<__nv_bfloat16>),
    CASE(votes),
    CASE(reduced<double, Add>),
    CASE(reduced<double, Maximum>),
    CASE(reduced<float, Add>),
    CASE(reduced<float, Maximum>),
};

extern "C" cudaError_t run_instruction(const char* name, const void* in, void* out, int count) {
    for (const Case& c : cases) {
        if (std::strcmp(c.name, name) == 0) return c.run(in, out, count);
    }
    return cudaErrorInvalidValue;
}
