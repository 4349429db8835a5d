// An update of lists of tensors, as an optimizer's: parameters of any sizes, strides and dtypes, and of each other list
// one for each parameter, of its shape and dtype.
//
// Threads: one launch for all. A table of the tensors travels as a parameter; a block finds its place there by its
// number, and takes 16 bytes of elements a thread: consecutive ones, in one access to each tensor, where all are one
// aligned run of memory in the same order; otherwise element by element at computed offsets.
//
// An Update holds the options, and has
//     operands                  how many lists, the parameters last
//     blocks                    how many a multiprocessor is to have room for
//     reads(t), writes(t)       which of them
//     take(rates, stride)       the numbers of its step from the device
//     apply(A (&of)[operands])  the formula, on one element of each
#pragma once

#include "instructions.cuh"
#include "launch.cuh"
#include "layout.cuh"
#include "types.cuh"

namespace scratchcuda {

constexpr int update_threads = 256;

template <int operands>
struct Lists {
    const Tensor* lists[operands];  // null where there is none: the parameters stand in for it
    int64_t count;

    void row(int64_t i, Tensor (&tensors)[operands]) const {
        for (int t = 0; t < operands; ++t) tensors[t] = (lists[t] ? lists[t] : lists[operands - 1])[i];
    }
};

template <int operands, int most_dims>
struct Row {
    void* data[operands];
    Dtype dtype;
    Elements<operands, most_dims> elements;
};

// As the kernels see the rates of all steps, and whose turn it is.
struct RateRows {
    const double* rates = nullptr;
    const int64_t* turn = nullptr;
    int64_t steps = 0, row_stride = 0, stride = 0;
};

template <class Update, int most_tensors_, int most_dims>
struct Table {
    static constexpr int most_tensors = most_tensors_, blocks = Update::blocks;
    Update update;
    RateRows rates;
    int tensors = 0;
    int64_t first_block[most_tensors];
    Row<Update::operands, most_dims> rows[most_tensors];
};

template <class T, class Update, int most_dims>
__device__ void update_block(const Update& update, const Row<Update::operands, most_dims>& row, int64_t block_number) {
    constexpr int operands = Update::operands;
    // The row stays in the kernel's parameters, where it takes no registers; [=] for all else takes fewer than [&].
    // Its pointers are read before anything is stored, so that the compiler need not read them again.
    take_block<T, update_threads>(row.elements, block_number, [=, &row](auto pack, const auto& at) {
        using Packed = decltype(pack);
        Packed packs[operands]{}, *places[operands];
#pragma unroll
        for (int t = 0; t < operands; ++t) {
            places[t] = reinterpret_cast<Packed*>(static_cast<T*>(row.data[t]) + at[t]);
            if (update.reads(t)) packs[t] = *places[t];
        }
#pragma unroll
        for (int e = 0; e < Packed::count; ++e) {
            Accumulator<T> of[operands];
#pragma unroll
            for (int t = 0; t < operands; ++t) of[t] = widen(packs[t].element[e]);
            update.apply(of);
#pragma unroll
            for (int t = 0; t < operands; ++t) packs[t].element[e] = narrow<T>(of[t]);
        }
#pragma unroll
        for (int t = 0; t < operands; ++t) {
            if (update.writes(t)) *places[t] = packs[t];
        }
    });
}

template <class Table>
__global__ void __launch_bounds__(update_threads, Table::blocks) update_tensors(const __grid_constant__ Table table) {
    overlap_launches();
    auto update = table.update;
    if (table.rates.turn) {
        const int64_t step = *table.rates.turn - 1;
        if (step < 0 || step >= table.rates.steps) return;
        update.take(table.rates.rates + step * table.rates.row_stride, table.rates.stride);
    }
    int tensor = 0;  // the last one whose first block is not after this one
    for (int step = Table::most_tensors / 2; step > 0; step /= 2) {
        const int next = tensor + step;
        if (next < table.tensors && table.first_block[next] <= blockIdx.x) tensor = next;
    }
    const auto& row = table.rows[tensor];
    const int64_t block_number = blockIdx.x - table.first_block[tensor];
    switch (row.dtype) {
        case Dtype::float64:
            return update_block<double>(update, row, block_number);
        case Dtype::float32:
            return update_block<float>(update, row, block_number);
        case Dtype::float16:
            return update_block<__half>(update, row, block_number);
        case Dtype::bfloat16:
            return update_block<__nv_bfloat16>(update, row, block_number);
        case Dtype::int64:
            return;
    }
}

// Launches for as many tensors at a time as the table holds.
template <class Table, class Update, int operands>
cudaError_t launch_update(const Update& update, const Lists<operands>& lists, const RateRows& rates,
                          cudaStream_t stream) {
    constexpr int most_tensors = Table::most_tensors;
    static_assert(sizeof(Table) <= 32764, "a kernel has no room for more parameters");
    static_assert((most_tensors & (most_tensors - 1)) == 0, "a block halves its way to its tensor");
    for (int64_t i = 0; i < lists.count;) {
        Table table;
        table.update = update, table.rates = rates;
        int64_t blocks = 0;
        for (; i < lists.count && table.tensors < most_tensors; ++i) {
            Tensor tensors[operands];
            lists.row(i, tensors);
            auto& row = table.rows[table.tensors];
            row.elements = {};
            as_elements(tensors, row.elements);  // which fits, as update_lists has seen
            if (row.elements.length == 0) continue;
            row.dtype = tensors[operands - 1].dtype;
            for (int t = 0; t < operands; ++t) row.data[t] = tensors[t].data;
            const int64_t block = update_threads * 16 / element_bytes(row.dtype);
            table.first_block[table.tensors++] = blocks;
            blocks += (row.elements.length + block - 1) / block;
        }
        if (blocks == 0) continue;
        const cudaError_t error = launch<update_tensors<Table>, update_threads>(blocks, 1, stream, table);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

// `most_tensors` of a launch, a power of two, if all have two dimensions at most.
template <int most_tensors, class Update, int operands = Update::operands>
cudaError_t update_lists(const Update& update, const Lists<operands>& lists, StepRates of, cudaStream_t stream) {
    RateRows rates;
    if (of.turn) {
        rates = {static_cast<const double*>(of.rates->data), static_cast<const int64_t*>(of.turn->data),
                 of.rates->size[0], of.rates->stride[0], of.rates->stride[1]};
    }
    // Nearly all tensors are laid out as their gradients, or transposed against them: two dimensions serve.
    bool flat = true;
    for (int64_t i = 0; i < lists.count; ++i) {
        Tensor tensors[operands];
        lists.row(i, tensors);
        Elements<operands> elements;
        if (!as_elements(tensors, elements)) return cudaErrorInvalidValue;
        flat &= elements.dims <= 2;
    }
    if (!flat) return launch_update<Table<Update, 32, max_dims>>(update, lists, rates, stream);
    if (lists.count <= 32) return launch_update<Table<Update, 32, 2>>(update, lists, rates, stream);
    return launch_update<Table<Update, most_tensors, 2>>(update, lists, rates, stream);
}

}  // namespace scratchcuda
