// How a team of threads takes a row: the thread of rank r the columns r, r + team, r + 2 team, ... It keeps `kept`
// values of the row in registers, or none, if the row is too long for that: then it reads them each time.
#pragma once

#include <cmath>

#include "reduce.cuh"

namespace scratchcuda {

// Calls `body` with each column j of this thread, and k, which counts them: those of the row alone, or, padded, as many
// as are kept.
template <int team, int kept, bool padded = false, class Body>
__device__ void each_column(int64_t columns, Body body) {
    const int rank = threadIdx.x % team;
    if constexpr (kept > 0) {
#pragma unroll
        for (int k = 0; k < kept; ++k) {
            const int64_t j = rank + int64_t(k) * team;
            if (padded || j < columns) body(j, k);
        }
    } else {
        for (int64_t j = rank; j < columns; j += team) body(j, 0);
    }
}

// This thread's values of a row. Of several, first find the rows and then make the parts: so all are read at a time.
template <class A, int team, int kept, class Row>
struct Part {
    Row row;
    A value[kept > 0 ? kept : 1];

    // What is kept beyond the end of the row is `outside`.
    __device__ Part(const Row& row, int64_t columns, A outside) : row(row) {
        const int rank = threadIdx.x % team;
#pragma unroll
        for (int k = 0; k < kept; ++k) {
            const int64_t j = rank + int64_t(k) * team;
            value[k] = j < columns ? widen(row[j]) : outside;
        }
    }

    __device__ A operator()(int64_t j, int k) const { return kept > 0 ? value[k] : widen(row[j]); }
};

// The largest of a row's scores and the sum of their exponentials beside it, in one pass: the sum is rescaled whenever
// the maximum grows.
template <class A>
struct ExponentialSum {
    A largest = lowest<A>();  // finite, so that a row that begins with -inf does not subtract it from itself
    A sum = 0;

    __device__ void add(A score) {
        if (score > largest) {
            sum *= std::exp(largest - score);
            largest = score;
        }
        sum += std::exp(score - largest);
    }

    // From a thread's to the row's.
    template <int team>
    __device__ void combine(A* shared) {
        const A row_largest = reduce<team>(largest, Maximum{}, shared);
        sum = reduce<team>(sum * std::exp(largest - row_largest), Add{}, shared);
        largest = row_largest;
    }
};

}  // namespace scratchcuda
