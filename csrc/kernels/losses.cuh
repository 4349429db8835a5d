// The elementwise losses: of each its name and its formulas, and the list of all. Names, ops and kernels follow from
// the list: a new loss is a struct here, and its place there.
#pragma once

#include <cmath>

#include "launchers.h"
#include "list.cuh"

namespace scratchcuda {

// What a loss may say otherwise. Its formulas are of a prediction p and a target t, and of its parameter, or else of
// the weight of positive targets: the value, and its derivative with respect to p, up to a factor.
struct LossFormula {
    static constexpr bool trains = true;  // a model: there are the ops of loss and gradient in one, and of a step
    static constexpr int parameters = 0;  // 1 at most
    static constexpr int weights = 0;     // of the values; of positive targets too, if they are 2
    static constexpr int factor = 1;
};

struct Mse : LossFormula {
    static constexpr const char* name = "mse";
    static constexpr int factor = 2;
    template <class A>
    static __device__ A value(A p, A t, A) {
        return (p - t) * (p - t);
    }
    template <class A>
    static __device__ A gradient(A p, A t, A) {
        return p - t;
    }
};

// NaN counts as 0, as it does for torch.
template <class A>
__device__ A sign(A x) {
    return A(x > 0) - A(x < 0);
}

struct L1 : LossFormula {
    static constexpr const char* name = "l1";
    template <class A>
    static __device__ A value(A p, A t, A) {
        return std::abs(p - t);
    }
    template <class A>
    static __device__ A gradient(A p, A t, A) {
        return sign(p - t);
    }
};

// With c the difference d, cut to at most delta, c (d - c / 2) is d^2 / 2 within and delta (|d| - delta / 2) beyond.
struct Huber : LossFormula {
    static constexpr const char* name = "huber";
    static constexpr int parameters = 1;  // delta
    template <class A>
    static __device__ A value(A p, A t, A delta) {
        const A cut = gradient(p, t, delta);
        return cut * (p - t - cut * A(0.5));
    }
    template <class A>
    static __device__ A gradient(A p, A t, A delta) {
        const A difference = p - t;
        return difference > delta ? delta : difference < -delta ? -delta : difference;
    }
};

// As Huber's over beta; of a beta of 0 it is L1.
struct SmoothL1 : LossFormula {
    static constexpr const char* name = "smooth_l1";
    static constexpr bool trains = false;
    static constexpr int parameters = 1;  // beta
    template <class A>
    static __device__ A value(A p, A t, A beta) {
        const A slope = gradient(p, t, beta);
        return slope * (p - t - slope * (A(0.5) * beta));
    }
    template <class A>
    static __device__ A gradient(A p, A t, A beta) {
        const A difference = p - t;
        return std::abs(difference) >= beta ? sign(difference) : difference / beta;
    }
};

// Logarithms are at least -100, and the divisor is at least 1e-12, as torch has them. What is no probability gives NaN.
struct BinaryCrossEntropy : LossFormula {
    static constexpr const char* name = "binary_cross_entropy";
    static constexpr bool trains = false;
    static constexpr int weights = 1;
    template <class A>
    static __device__ A value(A p, A t, A) {
        const A rest = A(1) - t;
        if (rest * t < 0) return std::nan("");
        return -(rest * at_least(std::log1p(-p), A(-100)) + t * at_least(std::log(p), A(-100)));
    }
    template <class A>
    static __device__ A gradient(A p, A t, A) {
        const A variance = (A(1) - p) * p;
        return (p - t) / (variance < 0 ? A(std::nan("")) : at_least(variance, A(1e-12)));
    }

  private:
    template <class A>
    static __device__ A at_least(A x, A least) {
        return x < least ? least : x;
    }
};

// Of scores x, with e = exp(-|x|): -log sigmoid(x) = max(-x, 0) + log(1 + e), in which nothing overflows, and no term
// of the value cancels another.
struct BinaryCrossEntropyWithLogits : LossFormula {
    static constexpr const char* name = "binary_cross_entropy_with_logits";
    static constexpr int weights = 2;
    template <class A>
    static __device__ A value(A x, A t, A positive) {
        const A rest = std::log1p(std::exp(-std::abs(x)));
        return (A(1) - t) * ((x < 0 ? A(0) : x) + rest) + positive * t * ((x < 0 ? -x : A(0)) + rest);
    }
    template <class A>
    static __device__ A gradient(A x, A t, A positive) {
        const A e = std::exp(-std::abs(x)), larger = A(1) / (A(1) + e), smaller = e * larger;
        return (A(1) - t) * (x < 0 ? smaller : larger) - positive * t * (x < 0 ? larger : smaller);
    }
};

using ElementwiseLosses = List<Mse, L1, Huber, SmoothL1, BinaryCrossEntropy, BinaryCrossEntropyWithLogits>;

}  // namespace scratchcuda
