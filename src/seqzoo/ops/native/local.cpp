// Operations on a token, and on a token and a few before it. The equations are those of
// seqzoo/ops/local.py and of seqzoo/ops/channel.py.
#include "common.h"

namespace {

constexpr int MOST = 8;             // mixes at once, and taps of a convolution
constexpr int GROUP = 4;            // vectors of channels that one thread reads of every token

// ---- mixes of a token with the one before it

template <class T, class To>
void shift(Arguments from) {
  const int64_t n = from.number(), B = from.number(), L = from.number(), D = from.number();
  auto x = from.tensor<T>(), last = from.tensor<T>(), mixes = from.tensor<T>();
  View<To> out[MOST];
  for (int64_t i = 0; i < n; ++i) out[i] = from.tensor<To>();
#pragma omp parallel for collapse(2) if (B * L * D > SMALL)
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < L; ++t) {
      const T *now = x.at(b, t), *before = t ? x.at(b, t - 1) : last.at(b);
      To* to[MOST];
      for (int64_t i = 0; i < n; ++i) to[i] = out[i].at(b, t);
      vectors<T>(0, D, [&](int64_t d, auto count) {
        const Vec<T> own = load(now + d, count), step = load(before + d, count) - own;
        for (int64_t i = 0; i < n; ++i) write(to[i] + d, Vec<T>(own + load(mixes.at(i) + d, count) * step), count);
      });
    }
}

template <class T, class To>
struct ShiftBack {
  int64_t n, B, L, D;
  View<T> x, last, mixes, of_x, of_last, of_mixes;
  View<To> given[MOST];
  explicit ShiftBack(Arguments& from)
      : n(from.number()), B(from.number()), L(from.number()), D(from.number()), x(from.tensor<T>()),
        last(from.tensor<T>()), mixes(from.tensor<T>()), of_x(from.tensor<T>()), of_last(from.tensor<T>()),
        of_mixes(from.tensor<T>()) {
    for (int64_t i = 0; i < n; ++i) given[i] = from.tensor<To>();
  }

  // Row b of the batch, G whole vectors of channels from d, or one of `left` channels.
  template <int G>
  void run(int64_t b, int64_t d, int64_t left = Lanes<T>::n) const {
    const int64_t count = G > 1 ? Lanes<T>::n : left;
    Vec<T> of_m[MOST][G] = {}, later[G] = {};  // later: the gradient by the token after
    for (int64_t t = L - 1; t >= 0; --t) {
      const T *own = x.at(b, t) + d, *before = (t ? x.at(b, t - 1) : last.at(b)) + d;
      Vec<T> step[G], total[G], moved[G] = {};
#pragma GCC unroll 4
      for (int j = 0; j < G; ++j) {
        const int64_t at = j * Lanes<T>::n;
        step[j] = load(before + at, count) - load(own + at, count), total[j] = later[j];
      }
      for (int64_t i = 0; i < n; ++i) {
        if (!given[i]) continue;
        const To* of_mixed = given[i].at(b, t) + d;
        const T* m = mixes.at(i) + d;
#pragma GCC unroll 4
        for (int j = 0; j < G; ++j) {
          const Vec<T> g = read(of_mixed + j * Lanes<T>::n, count);
          total[j] += g, moved[j] += g * load(m + j * Lanes<T>::n, count), of_m[i][j] += g * step[j];
        }
      }
      T* to = of_x.at(b, t) + d;
#pragma GCC unroll 4
      for (int j = 0; j < G; ++j)
        store(to + j * Lanes<T>::n, Vec<T>(total[j] - moved[j]), count), later[j] = moved[j];
    }
    for (int j = 0; j < G; ++j) {
      store(of_last.at(b) + d + j * Lanes<T>::n, later[j], count);
      for (int64_t i = 0; i < n; ++i) store(of_mixes.at(b, i) + d + j * Lanes<T>::n, of_m[i][j], count);
    }
  }
};

template <class T, class To>
void shift_back(Arguments from) {
  const ShiftBack<T, To> by(from);
  constexpr int n = Lanes<T>::n, wide = GROUP * n;
  const int64_t groups = (by.D + wide - 1) / wide;
#pragma omp parallel for if (by.B * by.L * by.D > SMALL)
  for (int64_t job = 0; job < by.B * groups; ++job) {
    const int64_t b = job / groups;
    int64_t d = job % groups * wide;
    if (d + wide <= by.D) by.template run<GROUP>(b, d);
    else
      for (; d < by.D; d += n) by.template run<1>(b, d, std::min<int64_t>(n, by.D - d));
  }
}

// ---- a causal convolution along time, each channel by itself

template <class T>
void convolve(Arguments from) {
  const int64_t B = from.number(), L = from.number(), D = from.number(), W = from.number();
  auto x = from.tensor<T>(), seen = from.tensor<T>(), taps = from.tensor<T>(), y = from.tensor<T>();
#pragma omp parallel for collapse(2) if (B * L * D > SMALL)
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < L; ++t)
      for (int64_t d = 0; d < D; d += Lanes<T>::n) {
        Vec<T> total = {};
        for (int64_t i = 0; i < W; ++i) {
          const int64_t p = t + i - (W - 1);  // tap i reads token p
          const T* token = p < 0 ? seen.at(b, p + W - 1) : x.at(b, p);
          total += load(taps.at(i) + d, D - d) * load(token + d, D - d);
        }
        store(y.at(b, t) + d, total, D - d);
      }
}

template <class T>
void convolve_back(Arguments from) {
  const int64_t B = from.number(), L = from.number(), D = from.number(), W = from.number();
  auto x = from.tensor<T>(), seen = from.tensor<T>(), taps = from.tensor<T>(), given = from.tensor<T>();
  auto of_x = from.tensor<T>(), of_seen = from.tensor<T>(), of_taps = from.tensor<T>();
  const int64_t lines = (D + Lanes<T>::n - 1) / Lanes<T>::n;
#pragma omp parallel for if (B * L * D > SMALL)
  for (int64_t job = 0; job < B * lines; ++job) {
    const int64_t b = job / lines, d = job % lines * Lanes<T>::n, count = D - d;
    Vec<T> tap[MOST], of_tap[MOST] = {};
    for (int64_t i = 0; i < W; ++i) tap[i] = load(taps.at(i) + d, count);
    for (int64_t p = 1 - W; p < L; ++p) {  // token p is read by tap i for the output of p + W - 1 - i
      const Vec<T> token = load((p < 0 ? seen.at(b, p + W - 1) : x.at(b, p)) + d, count);
      Vec<T> total = {};
      for (int64_t i = 0; i < W; ++i) {
        const int64_t t = p + W - 1 - i;
        if (t < 0 || t >= L) continue;
        const Vec<T> g = load(given.at(b, t) + d, count);
        total += tap[i] * g;
        of_tap[i] += token * g;
      }
      store((p < 0 ? of_seen.at(b, p + W - 1) : of_x.at(b, p)) + d, total, count);
    }
    for (int64_t i = 0; i < W; ++i) store(of_taps.at(b, i) + d, of_tap[i], count);
  }
}

// ---- element by element

// `vectors` of n numbers, by some threads.
template <class T, class Body>
void each(int64_t n, Body f) {
  constexpr int64_t block = 1 << 12;
#pragma omp parallel for if (n > SMALL)
  for (int64_t first = 0; first < n; first += block)
    vectors<T>(first, std::min(n, first + block), f);
}

template <class T, class X>
void squared_relu(Arguments from) {
  const int64_t n = from.number();
  auto x = from.tensor<X>(), y = from.tensor<X>();
  each<T>(n, [&](int64_t d, auto count) {
    const Vec<T> h = read(x.data + d, count);
    write(y.data + d, Vec<T>(h < 0 ? Vec<T>{} : h * h), count);
  });
}

template <class T, class X>
void squared_relu_back(Arguments from) {
  const int64_t n = from.number();
  auto x = from.tensor<X>(), of_y = from.tensor<X>(), of_x = from.tensor<X>();
  each<T>(n, [&](int64_t d, auto count) {
    const Vec<T> h = read(x.data + d, count), g = read(of_y.data + d, count);
    write(of_x.data + d, Vec<T>(h < 0 ? Vec<T>{} : T(2) * h * g), count);
  });
}

template <class T, class X>
void gate(Arguments from) {
  const int64_t n = from.number();
  auto r = from.tensor<X>(), x = from.tensor<X>(), y = from.tensor<X>();
  each<T>(n, [&](int64_t d, auto count) {
    const Sigmoid<T> open(read(r.data + d, count));
    write(y.data + d, Vec<T>(read(x.data + d, count) * open.numerator / open.denominator), count);
  });
}

template <class T, class X>
void gate_back(Arguments from) {
  const int64_t n = from.number();
  auto r = from.tensor<X>(), x = from.tensor<X>(), of_y = from.tensor<X>();
  auto of_r = from.tensor<X>(), of_x = from.tensor<X>();
  each<T>(n, [&](int64_t d, auto count) {
    const Sigmoid<T> s(read(r.data + d, count));
    const Vec<T> open = s.numerator / s.denominator, g = read(of_y.data + d, count) * open;
    write(of_r.data + d, Vec<T>(g * read(x.data + d, count) * (T(1) - open)), count);
    write(of_x.data + d, g, count);
  });
}

}  // namespace

extern "C" {
void squared_relu_forward_float32(const int64_t* from) { squared_relu<float, float>(Arguments(from)); }
void squared_relu_forward_float64(const int64_t* from) { squared_relu<double, double>(Arguments(from)); }
void squared_relu_forward_bfloat16(const int64_t* from) { squared_relu<float, BFloat16>(Arguments(from)); }
void squared_relu_backward_float32(const int64_t* from) { squared_relu_back<float, float>(Arguments(from)); }
void squared_relu_backward_float64(const int64_t* from) { squared_relu_back<double, double>(Arguments(from)); }
void squared_relu_backward_bfloat16(const int64_t* from) { squared_relu_back<float, BFloat16>(Arguments(from)); }
void gate_forward_float32(const int64_t* from) { gate<float, float>(Arguments(from)); }
void gate_forward_float64(const int64_t* from) { gate<double, double>(Arguments(from)); }
void gate_forward_bfloat16(const int64_t* from) { gate<float, BFloat16>(Arguments(from)); }
void gate_backward_float32(const int64_t* from) { gate_back<float, float>(Arguments(from)); }
void gate_backward_float64(const int64_t* from) { gate_back<double, double>(Arguments(from)); }
void gate_backward_bfloat16(const int64_t* from) { gate_back<float, BFloat16>(Arguments(from)); }
void token_shift_forward_float32(const int64_t* from) { shift<float, float>(Arguments(from)); }
void token_shift_forward_float64(const int64_t* from) { shift<double, double>(Arguments(from)); }
void token_shift_forward_to_bfloat16_float32(const int64_t* from) { shift<float, BFloat16>(Arguments(from)); }
void token_shift_backward_float32(const int64_t* from) { shift_back<float, float>(Arguments(from)); }
void token_shift_backward_float64(const int64_t* from) { shift_back<double, double>(Arguments(from)); }
void token_shift_backward_to_bfloat16_float32(const int64_t* from) { shift_back<float, BFloat16>(Arguments(from)); }
void causal_conv_forward_float32(const int64_t* from) { convolve<float>(Arguments(from)); }
void causal_conv_forward_float64(const int64_t* from) { convolve<double>(Arguments(from)); }
void causal_conv_backward_float32(const int64_t* from) { convolve_back<float>(Arguments(from)); }
void causal_conv_backward_float64(const int64_t* from) { convolve_back<double>(Arguments(from)); }
}
