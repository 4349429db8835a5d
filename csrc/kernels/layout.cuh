// Tensors of any dimensions and strides as kernels see them: an index of the kernel runs over several dimensions of the
// tensor, merged into as few as their strides allow. Nearly always that is one, and an offset is one multiplication.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "types.cuh"

namespace scratchcuda {

constexpr int max_dims = 16;

// The number of elements of so many dimensions.
inline int64_t product(const int64_t* size, int dims) {
    int64_t count = 1;
    for (int d = 0; d < dims; ++d) count *= size[d];
    return count;
}

// One index over merged dimensions, the innermost first.
struct Axis {
    int64_t length = 1;
    int dims = 1;
    int64_t size[max_dims] = {1};
    int64_t stride[max_dims] = {0};

    __device__ int64_t offset(int64_t i) const {
        int64_t sum = 0;
#pragma unroll 1  // each turn is a 64-bit division, which nearly nobody takes: one copy of it costs registers enough
        for (int d = 0; d + 1 < dims; ++d) {
            sum += i % size[d] * stride[d];
            i /= size[d];
        }
        return sum + i * stride[dims - 1];
    }

    // Puts a dimension outside of those that are there; false if there is no room.
    bool wrap(int64_t dim_size, int64_t dim_stride) {
        length *= dim_size;
        if (dim_size == 1) return true;
        int last = dims - 1;
        if (size[last] == 1) {
            size[last] = dim_size, stride[last] = dim_stride;
        } else if (dim_stride == size[last] * stride[last]) {
            size[last] *= dim_size;
        } else {
            if (dims == max_dims) return false;
            size[dims] = dim_size, stride[dims] = dim_stride;
            ++dims;
        }
        return true;
    }
};

// A tensor as a matrix: one dimension is the columns, the last if nothing else is said, all others are the rows.
template <class T>
struct Matrix {
    T* data;
    Axis rows, columns;

    __device__ T& at(int64_t i, int64_t j) const { return row(i)[j]; }

    // Of a matrix that is not transposed: its columns are one dimension.
    struct Row {
        T* data;
        int64_t stride;
        __device__ T& operator[](int64_t j) const { return data[j * stride]; }
    };
    __device__ Row row(int64_t i) const { return {data + rows.offset(i), columns.stride[0]}; }

    // Neighbours in memory are neighbours along the rows' index.
    bool along_rows() const {
        if (rows.length == 1 || columns.length == 1) return columns.length == 1;
        return std::abs(rows.stride[0]) < std::abs(columns.stride[0]);
    }

    Matrix transposed() const { return {data, columns, rows}; }
};

// `along` is the dimension of the columns, and what is none of the tensor's means a single column.
template <class T>
bool as_matrix(const Tensor& tensor, Matrix<T>& matrix, int along) {
    matrix.data = static_cast<T*>(tensor.data);
    for (int d = tensor.dims - 1; d >= 0; --d) {
        Axis& axis = d == along ? matrix.columns : matrix.rows;
        if (!axis.wrap(tensor.size[d], tensor.stride[d])) return false;
    }
    return true;
}

template <class T>
bool as_matrix(const Tensor& tensor, Matrix<T>& matrix) {
    return as_matrix(tensor, matrix, tensor.dims - 1);
}

// One index over `count` tensors of one shape, element by element. Where they are packed, each is one run of memory in
// the same order, aligned to 16 bytes.
template <int count, int most_dims = max_dims>
struct Elements {
    int64_t length = 1;
    int dims = 0;
    bool packed = false;
    int64_t size[most_dims];
    int64_t stride[count][most_dims];

    __device__ void offsets(int64_t i, int64_t (&sum)[count]) const {
        for (int t = 0; t < count; ++t) sum[t] = 0;
#pragma unroll 1
        for (int d = 0; d + 1 < dims; ++d) {
            const int64_t at = i % size[d];
            for (int t = 0; t < count; ++t) sum[t] += at * stride[t][d];
            i /= size[d];
        }
        for (int t = 0; t < count; ++t) sum[t] += i * stride[t][dims - 1];
    }
};

// The dimensions are taken in the order of the last tensor's strides, so that transposed ones merge too.
template <int count, int most_dims>
bool as_elements(const Tensor (&tensors)[count], Elements<count, most_dims>& elements) {
    const Tensor& last = tensors[count - 1];
    std::vector<int> order(last.dims);
    for (int d = 0; d < last.dims; ++d) {
        order[d] = last.dims - 1 - d;
        elements.length *= last.size[d];
    }
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return last.stride[a] < last.stride[b]; });
    for (int d : order) {
        if (last.size[d] == 1) continue;
        const int top = elements.dims - 1;
        bool merges = top >= 0;
        for (int t = 0; merges && t < count; ++t) {
            merges = tensors[t].stride[d] == elements.size[top] * elements.stride[t][top];
        }
        if (merges) {
            elements.size[top] *= last.size[d];
            continue;
        }
        if (elements.dims == most_dims) return false;
        elements.size[elements.dims] = last.size[d];
        for (int t = 0; t < count; ++t) elements.stride[t][elements.dims] = tensors[t].stride[d];
        ++elements.dims;
    }
    if (elements.dims == 0) {  // a single element
        elements.dims = 1;
        for (auto& stride : elements.stride) stride[0] = 1;
    }
    elements.packed = elements.dims == 1;
    for (int t = 0; t < count; ++t) {
        const auto address = reinterpret_cast<uintptr_t>(tensors[t].data);
        elements.packed &= elements.stride[t][0] == 1 && address % 16 == 0;
    }
    return true;
}

// Hands 16 bytes of elements to `body`: from `first` on, in one Pack, where they are packed, otherwise each by itself,
// `step` apart. It gets a value of the Pack's type, and where that lies in each tensor.
template <class T, int tensors, int most_dims, class Body>
__device__ void take_elements(const Elements<tensors, most_dims>& elements, int64_t first, int step, Body body) {
    constexpr int count = per_access<T>;
    int64_t at[tensors];
    if (elements.packed && first + count <= elements.length) {
        for (int64_t& offset : at) offset = first;
        return body(Pack<T, count>{}, at);
    }
#pragma unroll 1  // as in offsets()
    for (int e = 0; e < count; ++e) {
        const int64_t i = first + e * step;
        if (i >= elements.length) return;
        elements.offsets(i, at);
        body(Pack<T, 1>{}, at);
    }
}

// The same for each thread of a block. Those that are not packed are neighbours in a warp.
template <class T, int threads, int tensors, int most_dims, class Body>
__device__ void take_block(const Elements<tensors, most_dims>& elements, int64_t block, Body body) {
    constexpr int count = per_access<T>;
    const int64_t first = block * threads * count + threadIdx.x * (elements.packed ? count : 1);
    take_elements<T>(elements, first, elements.packed ? 1 : threads, body);
}

}  // namespace scratchcuda
