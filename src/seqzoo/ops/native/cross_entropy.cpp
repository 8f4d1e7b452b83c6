// Cross-entropy of rows of logits. The equations are those of seqzoo/ops/cross_entropy.py. P is the
// type of the logits, T that of sums.
#include <cmath>
#include <limits>

#include "products.h"

namespace {


template <class T, class P>
struct Inputs {
  int64_t rows, V, ignore;
  T smoothing;
  View<P> logits;
  View<int64_t> targets;
  View<T> norms;  // log of the sum of the exponentials of each row
  explicit Inputs(Arguments& from)
      : rows(from.number()), V(from.number()), ignore(from.number()), smoothing(from.real()),
        logits(from.tensor<P>()), targets(from.tensor<int64_t>()), norms(from.tensor<T>()) {}
  bool parallel() const { return rows * V > SMALL; }
};

// A vector of a row, with `beyond` in the lanes after its end.
template <class T, class P>
inline Vec<T> part(const P* row, int64_t d, int64_t V, T beyond) {
  Vec<T> x = read(row + d, V - d);
  for (int64_t i = V - d; i < Lanes<T>::n; ++i) x[i] = beyond;
  return x;
}

template <class T, class P>
void forward(Arguments from) {
  constexpr int n = Lanes<T>::n;
  Inputs<T, P> in(from);
  auto losses = from.tensor<T>();
#pragma omp parallel for if (in.parallel())
  for (int64_t i = 0; i < in.rows; ++i) {
    const P* row = in.logits.at(i);
    constexpr T none = -std::numeric_limits<T>::infinity();
    Vec<T> high = Vec<T>{} + none, total = {}, plain = {};
    for (int64_t d = 0; d < in.V; d += n) {
      const Vec<T> x = part<T>(row, d, in.V, none);
      high = x > high ? x : high;
    }
    const T most = largest<T>(high);
    for (int64_t d = 0; d < in.V; d += n) total += exp_of_negative<T>(part<T>(row, d, in.V, none) - most);
    const T norm = most + std::log(sum<T>(total));
    in.norms.data[i] = norm, losses.data[i] = 0;
    const int64_t target = in.targets.data[i];
    if (target == in.ignore) continue;
    T likely = read(row + target, 1)[0];
    if (in.smoothing != 0) {
      for (int64_t d = 0; d < in.V; d += n) plain += part<T>(row, d, in.V, T(0));
      likely += in.smoothing * (sum<T>(plain) / in.V - likely);
    }
    losses.data[i] = norm - likely;
  }
}

template <class T, class P>
void backward(Arguments from) {
  constexpr int n = Lanes<T>::n;
  Inputs<T, P> in(from);
  const T of_loss = *from.tensor<T>().data;
  auto of_logits = from.tensor<P>();
#pragma omp parallel for if (in.parallel())
  for (int64_t i = 0; i < in.rows; ++i) {
    const int64_t target = in.targets.data[i];
    const T scale = target == in.ignore ? T(0) : of_loss, spread = in.smoothing / in.V;
    for (int64_t d = 0; d < in.V; d += n) {
      Vec<T> g = exp_of_negative<T>(part<T>(in.logits.at(i), d, in.V, T(0)) - in.norms.data[i]) - spread;
      if (target >= d && target < d + n) g[target - d] -= 1 - in.smoothing;
      write(of_logits.at(i) + d, g * scale, in.V - d);
    }
  }
}

}  // namespace

extern "C" {
void cross_entropy_forward_float32(const int64_t* from) { forward<float, float>(Arguments(from)); }
void cross_entropy_forward_float64(const int64_t* from) { forward<double, double>(Arguments(from)); }
void cross_entropy_backward_float32(const int64_t* from) { backward<float, float>(Arguments(from)); }
void cross_entropy_backward_float64(const int64_t* from) { backward<double, double>(Arguments(from)); }
void cross_entropy_forward_bfloat16(const int64_t* from) { forward<float, BFloat16>(Arguments(from)); }
void cross_entropy_backward_bfloat16(const int64_t* from) { backward<float, BFloat16>(Arguments(from)); }
}
