// h_t = a_t h_{t-1} + b_t, element by element: one line of channels over all tokens.
#include "common.h"

namespace {


template <class T>
void forward(Arguments from) {
  const int64_t B = from.number(), L = from.number(), D = from.number();
  auto a = from.tensor<T>(), b = from.tensor<T>(), h = from.tensor<T>(), out = from.tensor<T>();
  constexpr int n = Lanes<T>::n;
  const int64_t lines = (D + n - 1) / n;
#pragma omp parallel for if (B * L * D > SMALL)
  for (int64_t job = 0; job < B * lines; ++job) {
    const int64_t i = job / lines, d = job % lines * n, count = D - d;
    Vec<T> state = load(h.at(i) + d, count);
    for (int64_t t = 0; t < L; ++t) {
      state = load(a.at(i, t) + d, count) * state + load(b.at(i, t) + d, count);
      store(out.at(i, t) + d, state, count);
    }
  }
}

template <class T>
void backward(Arguments from) {
  const int64_t B = from.number(), L = from.number(), D = from.number();
  auto a = from.tensor<T>(), h = from.tensor<T>(), states = from.tensor<T>(), given = from.tensor<T>();
  auto of_a = from.tensor<T>(), of_b = from.tensor<T>(), of_h = from.tensor<T>();
  constexpr int n = Lanes<T>::n;
  const int64_t lines = (D + n - 1) / n;
#pragma omp parallel for if (B * L * D > SMALL)
  for (int64_t job = 0; job < B * lines; ++job) {
    const int64_t i = job / lines, d = job % lines * n, count = D - d;
    Vec<T> later = {};  // the gradient of h_t by all that follows t
    for (int64_t t = L - 1; t >= 0; --t) {
      const Vec<T> g = later + load(given.at(i, t) + d, count);
      const T* before = t ? states.at(i, t - 1) : h.at(i);
      store(of_b.at(i, t) + d, g, count);
      store(of_a.at(i, t) + d, Vec<T>(g * load(before + d, count)), count);
      later = g * load(a.at(i, t) + d, count);
    }
    store(of_h.at(i) + d, later, count);
  }
}

}  // namespace

extern "C" {
void linear_scan_forward_float32(const int64_t* from) { forward<float>(Arguments(from)); }
void linear_scan_forward_float64(const int64_t* from) { forward<double>(Arguments(from)); }
void linear_scan_backward_float32(const int64_t* from) { backward<float>(Arguments(from)); }
void linear_scan_backward_float64(const int64_t* from) { backward<double>(Arguments(from)); }
}
