// The tiled matrix product: c_ij = sum_k a_ik b_kj, handed element by element to an epilogue that knows what to do with
// it. Any strides: what is a transpose to one caller is a plain matrix to another.
//
// Threads: a block computes a tile of c (rows x columns), and walks along k in steps of `depth`. At each step it has
// brought a tile of a and a tile of b into shared memory, both with k as the slow index, in the background and
// `stages` - 1 steps ahead. Each thread multiplies a column of thread_rows values by a row of thread_columns values for
// each k, and keeps the sums in registers: its rows come in runs of `run` values, read in one access, one run out of
// every thread_rows / run parts of the tile. The lanes of a warp are 8 x 4, so that a warp reads 8 neighbouring runs of
// a and 4 of b: no two lanes ask one bank for different words. Within a block, every sum runs along k in order.
// Least work for (m, k) (k, n): 2 m n k operations, (m k + k n + m n) elements moved; with tiles, m n k / columns +
// m n k / rows elements are read from the caches. For large products the multiplications are the limit.
//
// Tensor cores would take the place of the innermost loops of matmul(): tiles in shared memory, a thread's part of the
// sums in registers and the epilogue can stay.
#pragma once

#include "instructions.cuh"
#include "launch.cuh"
#include "layout.cuh"

namespace scratchcuda {

template <int rows_, int columns_, int depth_, int thread_rows_, int thread_columns_>
struct TileShape {
    static constexpr int rows = rows_, columns = columns_, depth = depth_;
    static constexpr int thread_rows = thread_rows_, thread_columns = thread_columns_;
    static constexpr int row_threads = rows / thread_rows, column_threads = columns / thread_columns;
    static constexpr int threads = row_threads * column_threads;
    static constexpr int stages = 3;
    static_assert(depth % 8 == 0 && row_threads % 8 == 0 && column_threads % 4 == 0);
    static_assert(thread_rows % 4 == 0 && thread_columns % 4 == 0 && threads % columns == 0);
};

using SmallTile = TileShape<32, 32, 16, 4, 4>;
using MediumTile = TileShape<64, 64, 16, 8, 4>;
using LargeTile = TileShape<128, 128, 8, 8, 8>;
using ThinTile = TileShape<128, 16, 16, 4, 4>;

// Calls `body` with a value of the shape of `tile`.
template <class Body>
auto dispatch(Tile tile, Body body) {
    switch (tile) {
        case Tile::medium:
            return body(MediumTile{});
        case Tile::large:
            return body(LargeTile{});
        case Tile::thin:
            return body(ThinTile{});
        default:
            return body(SmallTile{});
    }
}

inline int64_t tiles(Tile tile, int64_t m, int64_t n) {
    return dispatch(tile, [=](auto shape) {
        return ((m + shape.rows - 1) / shape.rows) * ((n + shape.columns - 1) / shape.columns);
    });
}

// About as many blocks as a large GPU has multiprocessors. A constant, so that a shape has the same sums everywhere.
constexpr int64_t enough_blocks = 128;

// Few columns are for the thin tile, otherwise it is the largest tile of which there are enough to go round.
inline Tile choose_tile(Tile asked, int64_t m, int64_t n) {
    if (asked != Tile::automatic) return asked;
    if (n <= ThinTile::columns) return Tile::thin;
    for (const Tile tile : {Tile::large, Tile::medium}) {
        if (tiles(tile, m, n) >= enough_blocks) return tile;
    }
    return Tile::small;
}

// How a factor is brought into shared memory, by its layout: in runs of 16 bytes along the outer index (a row of a, a
// column of b) or along k, or in single elements of which neighbouring lanes take neighbours along either.
enum class Load { outer_runs, k_runs, outer, k };

template <class T>
struct Operand {
    const T* data;
    Axis outer, k;
    Load load;

    // `matrix` has k as its columns.
    explicit Operand(const Matrix<T>& matrix) : data(matrix.data), outer(matrix.rows), k(matrix.columns) {
        load = matrix.along_rows() ? Load::outer : Load::k;
        if (runs_along(outer, k)) load = Load::outer_runs;
        // An asynchronous copy of 4 or 8 bytes goes wherever its element belongs; 2 bytes cannot be copied so, and a
        // run along k has to pass through registers, to be spread over the rows of the tile.
        if (sizeof(T) < 4 && runs_along(k, outer)) load = Load::k_runs;
    }

  private:
    bool runs_along(const Axis& axis, const Axis& other) const {
        bool runs = axis.dims == 1 && axis.stride[0] == 1 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
        for (int d = 0; d < other.dims; ++d) runs &= other.stride[d] % per_access<T> == 0;
        return runs;
    }
};

template <class T>
struct Product {
    Operand<T> a, b;
    int64_t k_chunk;  // the blocks of one grid.y share out k in chunks, of which runs of 16 bytes are not cut
};

// Values of a thread that lie side by side, in a shared tile of T and in a tile of sums.
template <class T>
constexpr int run = sizeof(T) == 8 ? 2 : 4;

// 16 bytes more than needed shift the rows against one another, so that stores along k meet different banks.
template <class T, int outer>
constexpr int pitch = outer + 16 / sizeof(T);

// Brings the tile [k_first, k_first + depth) x [first, first + outer) of a factor; what lies outside becomes zero.
template <int outer, int depth, int threads, class T>
__device__ void load_tile(T* tile, const Operand<T>& from, int64_t first, int64_t k_first, int64_t k_end) {
    constexpr int row = pitch<T, outer>, count = per_access<T>, runs = outer / count;
    static_assert(threads % runs == 0 && threads % outer == 0 && threads % 8 == 0);
    const int rank = threadIdx.x;
    const int64_t outer_left = from.outer.length - first, k_left = k_end - k_first;
    if (from.load == Load::outer_runs) {
        const int o = rank % runs * count;
        const int inside = static_cast<int>(max(int64_t(0), min(int64_t(count), outer_left - o)));
        for (int k = rank / runs; k < depth; k += threads / runs) {
            const int valid = k < k_left ? inside : 0;
            const T* source = valid ? from.data + first + o + from.k.offset(k_first + k) : from.data;
            copy_async<count>(tile + k * row + o, source, valid);
        }
    } else if (sizeof(T) < 4 && from.load == Load::k_runs) {
        const int o = rank % outer;
        for (int k = rank / outer * count; k < depth; k += threads / outer * count) {
            Pack<T, count> values{};
            const T* source = from.data + from.outer.offset(first + o) + k_first + k;
            if (o < outer_left && k + count <= k_left) values = *reinterpret_cast<const Pack<T, count>*>(source);
#pragma unroll
            for (int e = 0; e < count; ++e) {
                if (o < outer_left && k + count > k_left && k + e < k_left) values.element[e] = source[e];
                tile[(k + e) * row + o] = values.element[e];
            }
        }
    } else {
        // 8 lanes along k and 4 along the outer index, or all along the outer index: neither meets a bank twice.
        const bool along_k = from.load == Load::k;
        const int k_step = along_k ? 8 : threads / outer, o_step = along_k ? threads / 8 : outer;
#pragma unroll 1
        for (int k = along_k ? rank % 8 : rank / outer; k < depth; k += k_step) {
            const T* source = from.data + (k < k_left ? from.k.offset(k_first + k) : 0);
#pragma unroll 1
            for (int o = along_k ? rank / 8 : rank % outer; o < outer; o += o_step) {
                const bool valid = k < k_left && o < outer_left;
                copy_async<1>(tile + k * row + o, valid ? source + from.outer.offset(first + o) : from.data, valid);
            }
        }
    }
}

// A thread's values of an operand for one k, from its runs in a row of a shared tile.
template <int count, int threads, class T>
__device__ void read_runs(Accumulator<T> (&values)[count], const T* row, int rank) {
    using Run = Pack<T, run<T>>;
#pragma unroll
    for (int r = 0; r < count / run<T>; ++r) {
        const Run part = *reinterpret_cast<const Run*>(row + (r * threads + rank) * run<T>);
#pragma unroll
        for (int e = 0; e < run<T>; ++e) values[r * run<T> + e] = widen(part.element[e]);
    }
}

// An Epilogue has operator()(i, j, c_ij), called once for each element by one thread, and along_rows, true if
// neighbours in its memory are neighbours along i. If its column_sums is true, it also has column_sum(j, sum_k b_kj),
// called once for each column.
// Two blocks fit on a multiprocessor, unless the sums are of 8 bytes: their registers do not. Five fit of 128 threads
// and values of 16 bits, however many activations an epilogue chooses from.
template <class T, class Shape>
constexpr int blocks_that_fit = sizeof(T) == 8                            ? 1
                                : sizeof(T) == 2 && Shape::threads == 128 ? 5
                                                                          : 2;

template <class T, class Shape, class Epilogue>
__global__ void __launch_bounds__(Shape::threads, blocks_that_fit<T, Shape>)
    matmul(const __grid_constant__ Product<T> product, const __grid_constant__ Epilogue epilogue) {
    using A = Accumulator<T>;
    constexpr int a_tile = Shape::depth * pitch<T, Shape::rows>, b_tile = Shape::depth * pitch<T, Shape::columns>;
    overlap_launches();
    SharedMemory memory;
    T* a_tiles = memory.take<T>(Shape::stages * a_tile);
    T* b_tiles = memory.take<T>(Shape::stages * b_tile);

    const int64_t m = product.a.outer.length, n = product.b.outer.length;
    const int64_t column_tiles = (n + Shape::columns - 1) / Shape::columns;
    const int64_t i_first = blockIdx.x / column_tiles * Shape::rows;
    const int64_t j_first = blockIdx.x % column_tiles * Shape::columns;
    const int64_t k_first = blockIdx.y * product.k_chunk;
    const int64_t k_end = min(k_first + product.k_chunk, product.a.k.length);

    // The lanes of a warp are 8 x 4; the warps lie along the rows first.
    constexpr int row_warps = Shape::row_threads / 8;
    const int rank = threadIdx.x, lane = rank % 32, warp = rank / 32;
    const int row_rank = warp % row_warps * 8 + lane / 4, column_rank = warp / row_warps * 4 + lane % 4;

    A sums[Shape::thread_rows][Shape::thread_columns] = {};
    A column_sums[Shape::thread_columns] = {};

    int stage = 0, stage_ahead = 0;
    for (int64_t k_step = k_first - (Shape::stages - 1) * Shape::depth; k_step < k_end; k_step += Shape::depth) {
        if (k_step >= k_first) {
            cp_async_wait_group<Shape::stages - 2>();
            __syncthreads();  // this step's tiles are there for all, and nobody reads the previous step's any more
        }
        const int64_t k_ahead = k_step + (Shape::stages - 1) * Shape::depth;
        if (k_ahead < k_end) {
            load_tile<Shape::rows, Shape::depth, Shape::threads>(a_tiles + stage_ahead * a_tile, product.a, i_first,
                                                                 k_ahead, k_end);
            load_tile<Shape::columns, Shape::depth, Shape::threads>(b_tiles + stage_ahead * b_tile, product.b, j_first,
                                                                    k_ahead, k_end);
        }
        cp_async_commit_group();  // empty past the end, so that the count of groups goes on
        stage_ahead = stage_ahead + 1 < Shape::stages ? stage_ahead + 1 : 0;
        if (k_step < k_first) continue;
        const T* a_rows = a_tiles + stage * a_tile;
        const T* b_rows = b_tiles + stage * b_tile;
        stage = stage + 1 < Shape::stages ? stage + 1 : 0;
#pragma unroll 4
        for (int k = 0; k < Shape::depth; ++k) {  // wholly unrolled, it takes six times as long to compile
            A a[Shape::thread_rows], b[Shape::thread_columns];
            read_runs<Shape::thread_rows, Shape::row_threads>(a, a_rows + k * pitch<T, Shape::rows>, row_rank);
            read_runs<Shape::thread_columns, Shape::column_threads>(b, b_rows + k * pitch<T, Shape::columns>,
                                                                    column_rank);
#pragma unroll
            for (int r = 0; r < Shape::thread_rows; ++r) {
#pragma unroll
                for (int c = 0; c < Shape::thread_columns; ++c) sums[r][c] += a[r] * b[c];
            }
            if constexpr (Epilogue::column_sums) {
#pragma unroll
                for (int c = 0; c < Shape::thread_columns; ++c) column_sums[c] += b[c];
            }
        }
    }

    // The sums go through shared memory, a part of the rows at a time, so that neighbouring lanes write neighbours in
    // memory whatever the layout, and the epilogue's code stands once instead of once for each value of a thread.
    constexpr int parts = Shape::thread_rows / run<T>, part_rows = Shape::rows / parts;
    constexpr int row = pitch<A, Shape::columns>;
    using Run = Pack<A, run<T>>;
    __syncthreads();
    memory.release();
    A* part_sums = memory.take<A>(part_rows * row);
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {
#pragma unroll
        for (int r = 0; r < Shape::thread_rows; ++r) {
            if (r / run<T> != part) continue;
            A* to = part_sums + (row_rank * run<T> + r % run<T>)*row + column_rank * run<T>;
#pragma unroll
            for (int c = 0; c < Shape::thread_columns; c += run<T>) {
                Run values;
#pragma unroll
                for (int e = 0; e < run<T>; ++e) values.element[e] = sums[r][c + e];
                *reinterpret_cast<Run*>(to + c * Shape::column_threads) = values;
            }
        }
        __syncthreads();
        // Lanes as in load_tile.
        const int r_step = epilogue.along_rows ? 8 : Shape::threads / Shape::columns;
        const int c_step = epilogue.along_rows ? Shape::threads / 8 : Shape::columns;
#pragma unroll 1
        for (int r = epilogue.along_rows ? rank % 8 : rank / Shape::columns; r < part_rows; r += r_step) {
            const int64_t i = i_first + part * part_rows + r;
#pragma unroll 1
            for (int c = epilogue.along_rows ? rank / 8 : rank % Shape::columns; c < Shape::columns; c += c_step) {
                const int64_t j = j_first + c;
                if (i < m && j < n) epilogue(i, j, part_sums[r * row + c]);
            }
        }
        __syncthreads();
    }
    if constexpr (Epilogue::column_sums) {
        if (i_first > 0 || row_rank > 0) return;
#pragma unroll
        for (int c = 0; c < Shape::thread_columns; ++c) {
            const int64_t j = j_first + (c / run<T> * Shape::column_threads + column_rank) * run<T> + c % run<T>;
            if (j < n) epilogue.column_sum(j, column_sums[c]);
        }
    }
}

// a is (m, k), b is (k, n); grid.y blocks share out k, each in a call of the epilogue of its own.
template <class T, class Epilogue>
cudaError_t launch_matmul(Tile tile, const Matrix<T>& a, const Matrix<T>& b, int64_t splits, const Epilogue& epilogue,
                          cudaStream_t stream) {
    constexpr int64_t unit = 16;  // a multiple of all runs
    const int64_t chunk = (a.columns.length + splits * unit - 1) / (splits * unit) * unit;
    const Product<T> product{Operand<T>(a), Operand<T>(b.transposed()), chunk};
    return dispatch(tile, [&](auto shape) {
        using Shape = decltype(shape);
        const int64_t rows = std::max<int64_t>(1, a.rows.length);  // without rows, column sums are still due
        const int64_t blocks = tiles(tile, rows, b.columns.length);
        constexpr int part_rows = Shape::rows / Shape::thread_rows * run<T>;
        constexpr size_t shared_bytes =
            std::max(Shape::stages * Shape::depth * (pitch<T, Shape::rows> + pitch<T, Shape::columns>)*sizeof(T),
                     part_rows * pitch<Accumulator<T>, Shape::columns> * sizeof(Accumulator<T>));
        return launch<matmul<T, Shape, Epilogue>, Shape::threads, shared_bytes>(blocks, splits, stream, product,
                                                                                epilogue);
    });
}

}  // namespace scratchcuda
