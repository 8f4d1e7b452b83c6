// The RG-LRU: seqzoo/ops/rg_lru.py. One line of channels of a block over all tokens.
#include <cmath>

#include "common.h"

namespace {

template <class T>
inline Vec<T> square_root(Vec<T> x) {
  for (int i = 0; i < Lanes<T>::n; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

// 1 - e^x for x <= 0, by its series where that is nearly 0.
template <class T>
inline Vec<T> one_minus_exp(Vec<T> x) {
  constexpr T near = T(-0.25);
  const Vec<T> small = x < near ? Vec<T>{} + near : x;
  Vec<T> series = Vec<T>{} + T(1);
#pragma GCC unroll 16
  for (int i = sizeof(T) == 8 ? 12 : 7; i > 1; --i) series = T(1) + small * series / T(i);
  return x < near ? T(1) - exp_of_negative<T>(x) : -small * series;
}

// What a token makes of its numbers: h_t = a h_{t-1} + m s x.
template <class T>
struct Token {
  Vec<T> x, s, share, a, m2, m;
  Token(Vec<T> x, Vec<T> r, Vec<T> i, Vec<T> rate, T least) : x(x), s(sigmoid<T>(i)), share(sigmoid<T>(r)) {
    const Vec<T> log_a = rate * share;
    a = exp_of_negative<T>(log_a);
    m2 = one_minus_exp<T>(log_a * T(2));
    m = square_root<T>(m2 < least ? Vec<T>{} + least : m2);
  }
};

// Tensors of both passes: x (B, L, D), gates (H, B, L, 2 D / H), rate (D), h (B, D), states (B, L, D).
template <class T, class P>
struct Inputs {
  int64_t H, B, L, size, lines;
  T least;
  View<T> x;
  View<P> gates;
  View<T> rate, h, states;
  explicit Inputs(Arguments& from) : H(from.number()), B(from.number()), L(from.number()), size(from.number()) {
    least = from.real();
    x = from.tensor<T>(), gates = from.tensor<P>(), rate = from.tensor<T>(), h = from.tensor<T>();
    states = from.tensor<T>();
    lines = (size + Lanes<T>::n - 1) / Lanes<T>::n;
  }
  // Calls f(block, row, first channel in the block, first of all, count) for every line.
  template <class Body>
  void each_line(Body f) const {
#pragma omp parallel for if (B * L * H * size > SMALL)
    for (int64_t job = 0; job < B * H * lines; ++job) {
      const int64_t b = job / (H * lines), block = job / lines % H, d = job % lines * Lanes<T>::n;
      if (d + Lanes<T>::n <= size) f(block, b, d, block * size + d, std::integral_constant<int64_t, Lanes<T>::n>());
      else f(block, b, d, block * size + d, size - d);
    }
  }
  template <class Count>
  Token<T> token(int64_t block, int64_t b, int64_t t, int64_t d, int64_t e, Vec<T> rates, Count count) const {
    const P* gate = gates.at(block, b, t) + d;
    return {load(x.at(b, t) + e, count), read(gate, count), read(gate + size, count), rates, least};
  }
};

template <class T, class P>
void forward(Arguments from) {
  const Inputs<T, P> in(from);
  in.each_line([&](int64_t block, int64_t b, int64_t d, int64_t e, auto count) {
    const Vec<T> rates = load(in.rate.at(0) + e, count);
    Vec<T> h = load(in.h.at(b) + e, count);
    for (int64_t t = 0; t < in.L; ++t) {
      const Token<T> now = in.token(block, b, t, d, e, rates, count);
      h = now.a * h + now.m * now.s * now.x;
      store(in.states.at(b, t) + e, h, count);
    }
  });
}

template <class T, class P>
void backward(Arguments from) {
  const Inputs<T, P> in(from);
  auto given = from.tensor<T>(), of_x = from.tensor<T>();
  auto of_gates = from.tensor<P>();
  auto of_rate = from.tensor<T>(), of_h = from.tensor<T>();  // of_rate of each row of the batch
  in.each_line([&](int64_t block, int64_t b, int64_t d, int64_t e, auto count) {
    const Vec<T> rates = load(in.rate.at(0) + e, count);
    Vec<T> later = {}, of_rates = {};  // `later`: the gradient of h_t by all that follows t
    for (int64_t t = in.L - 1; t >= 0; --t) {
      const Token<T> now = in.token(block, b, t, d, e, rates, count);
      const Vec<T> g = later + load(given.at(b, t) + e, count);
      const Vec<T> before = load((t ? in.states.at(b, t - 1) : in.h.at(b)) + e, count);
      const Vec<T> of_m = now.m2 < in.least ? Vec<T>{} : g * now.s * now.x;
      const Vec<T> of_log_a = now.a * (g * before - of_m * now.a / now.m);
      const Vec<T> of_s = g * now.m * now.x;
      P* of_gate = of_gates.at(block, b, t) + d;
      store(of_x.at(b, t) + e, Vec<T>(g * now.m * now.s), count);
      write(of_gate, of_log_a * rates * now.share * (T(1) - now.share), count);
      write(of_gate + in.size, of_s * now.s * (T(1) - now.s), count);
      of_rates += of_log_a * now.share;
      later = g * now.a;
    }
    store(of_rate.at(b) + e, of_rates, count);
    store(of_h.at(b) + e, later, count);
  });
}

}  // namespace

extern "C" {
void rg_lru_forward_float32(const int64_t* from) { forward<float, float>(Arguments(from)); }
void rg_lru_forward_float64(const int64_t* from) { forward<double, double>(Arguments(from)); }
void rg_lru_forward_of_bfloat16_float32(const int64_t* from) { forward<float, BFloat16>(Arguments(from)); }
void rg_lru_backward_float32(const int64_t* from) { backward<float, float>(Arguments(from)); }
void rg_lru_backward_float64(const int64_t* from) { backward<double, double>(Arguments(from)); }
void rg_lru_backward_of_bfloat16_float32(const int64_t* from) { backward<float, BFloat16>(Arguments(from)); }
}
