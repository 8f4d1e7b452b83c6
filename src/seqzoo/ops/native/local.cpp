// Operations on a token, and on a token and a few before it. The equations are those of
// seqzoo/ops/local.py and of seqzoo/ops/channel.py.
#include "common.h"

namespace {

constexpr int MOST = 8;   // mixes at once
constexpr int AHEAD = 8;  // tokens: rows a whole width apart are asked for so early

// Calls f(vectors, b, d, left) for all channels of every row of the batch: for `vectors` whole ones, G
// of them or one, from channel d, or for one of `left` channels.
template <class T, int G, class F>
void in_groups(int64_t B, int64_t L, int64_t D, F f) {
  constexpr int n = Lanes<T>::n, wide = G * n;
  const int64_t groups = (D + wide - 1) / wide;
#pragma omp parallel for if (B * L * D > SMALL)
  for (int64_t job = 0; job < B * groups; ++job) {
    const int64_t b = job / groups;
    int64_t d = job % groups * wide;
    if (d + wide <= D) f(std::integral_constant<int, G>(), b, d, n);
    else
      for (; d < D; d += n) f(std::integral_constant<int, 1>(), b, d, std::min<int64_t>(n, D - d));
  }
}

// ---- mixes of a token with the one before it

template <class T, class To>
struct Shift {
  int64_t n, B, L, D;
  View<T> x, last, mixes;
  View<To> moves;  // of each token and mix, if there are any
  explicit Shift(Arguments& from)
      : n(from.number()), B(from.number()), L(from.number()), D(from.number()), x(from.tensor<T>()),
        last(from.tensor<T>()), mixes(from.tensor<T>()), moves(from.tensor<To>()) {}

  const T* before(int64_t b, int64_t t) const { return t ? x.at(b, t - 1) : last.at(b); }

  // The shares of mix i at channel d of a token.
  Vec<T> share(int64_t i, int64_t b, int64_t t, int64_t d, int64_t count) const {
    const Vec<T> m = load(mixes.at(i) + d, count);
    return moves ? Vec<T>(m + read(moves.at(i, b, t) + d, count)) : m;
  }
};

template <class T, class To>
void shift(Arguments from) {
  const Shift<T, To> by(from);
  View<To> out[MOST];
  for (int64_t i = 0; i < by.n; ++i) out[i] = from.tensor<To>();
#pragma omp parallel for collapse(2) if (by.B * by.L * by.D > SMALL)
  for (int64_t b = 0; b < by.B; ++b)
    for (int64_t t = 0; t < by.L; ++t) {
      const T *now = by.x.at(b, t), *before = by.before(b, t);
      To* to[MOST];
      for (int64_t i = 0; i < by.n; ++i) to[i] = out[i].at(b, t);
      vectors<T>(0, by.D, [&](int64_t d, auto count) {
        const Vec<T> own = load(now + d, count), step = load(before + d, count) - own;
        for (int64_t i = 0; i < by.n; ++i) write(to[i] + d, Vec<T>(own + by.share(i, b, t, d, count) * step), count);
      });
    }
}

template <class T, class To>
struct ShiftBack : Shift<T, To> {
  View<T> of_x, of_last, of_mixes;
  View<To> of_moves, given[MOST];
  explicit ShiftBack(Arguments& from)
      : Shift<T, To>(from), of_x(from.tensor<T>()), of_last(from.tensor<T>()), of_mixes(from.tensor<T>()),
        of_moves(from.tensor<To>()) {
    for (int64_t i = 0; i < this->n; ++i) given[i] = from.tensor<To>();
  }

  // Row b of the batch, G whole vectors of channels from d, or one of `left` channels.
  template <bool MOVED, int G>
  void run(int64_t b, int64_t d, int64_t left) const {
    const int64_t count = G > 1 ? Lanes<T>::n : left, ahead = AHEAD * this->D;
    Vec<T> of_m[MOST][G] = {}, later[G] = {};  // later: the gradient by the token after
    for (int64_t t = this->L - 1; t >= 0; --t) {
      const T *own = this->x.at(b, t) + d, *before = this->before(b, t) + d;
      Vec<T> step[G], total[G], moved[G] = {};
#pragma GCC unroll 4
      for (int j = 0; j < G; ++j) {
        const int64_t at = j * Lanes<T>::n;
        step[j] = load(before + at, count) - load(own + at, count), total[j] = later[j];
      }
      for (int64_t i = 0; i < this->n; ++i) {
        if (!given[i]) continue;
        const To *of_mixed = given[i].at(b, t) + d, *move = MOVED ? this->moves.at(i, b, t) + d : nullptr;
        const T* m = this->mixes.at(i) + d;
        To* of_move = MOVED ? of_moves.at(i, b, t) + d : nullptr;
        ask_for(of_mixed - ahead, G * Lanes<T>::n);
        if (MOVED) ask_for(move - ahead, G * Lanes<T>::n), ask_for<1>(of_move - ahead, G * Lanes<T>::n);
#pragma GCC unroll 4
        for (int j = 0; j < G; ++j) {
          const int64_t at = j * Lanes<T>::n;
          const Vec<T> g = read(of_mixed + at, count), of_share = g * step[j];
          Vec<T> share = load(m + at, count);
          if (MOVED) share += read(move + at, count), write(of_move + at, of_share, count);
          total[j] += g, moved[j] += g * share, of_m[i][j] += of_share;
        }
      }
      T* to = of_x.at(b, t) + d;
#pragma GCC unroll 4
      for (int j = 0; j < G; ++j)
        store(to + j * Lanes<T>::n, Vec<T>(total[j] - moved[j]), count), later[j] = moved[j];
    }
    for (int j = 0; j < G; ++j) {
      store(of_last.at(b) + d + j * Lanes<T>::n, later[j], count);
      for (int64_t i = 0; i < this->n; ++i) store(of_mixes.at(b, i) + d + j * Lanes<T>::n, of_m[i][j], count);
    }
  }
};

template <class T, class To>
void shift_back(Arguments from) {
  const ShiftBack<T, To> by(from);
  in_groups<T, 4>(by.B, by.L, by.D, [&](auto group, int64_t b, int64_t d, int64_t left) {
    if (by.moves) by.template run<true, group.value>(b, d, left);
    else by.template run<false, group.value>(b, d, left);
  });
}

// ---- a causal convolution along time, each channel by itself

template <class T, class X, int W>
struct Convolution {
  int64_t B, L, D;
  View<X> x;
  View<T> seen, taps;
  explicit Convolution(Arguments& from)
      : B(from.number()), L(from.number()), D(from.number()), x(from.tensor<X>()), seen(from.tensor<T>()),
        taps(from.tensor<T>()) {}

  // Channel d of token p, which is one before the first if it is negative.
  Vec<T> token(int64_t b, int64_t p, int64_t d, int64_t count) const {
    return p < 0 ? load(seen.at(b, p + W - 1) + d, count) : read(x.at(b, p) + d, count);
  }
};

template <class T, class X, int W>
void convolve(Arguments from) {
  const Convolution<T, X, W> in(from);
  auto y = from.tensor<T>();
#pragma omp parallel for collapse(2) if (in.B * in.L * in.D > SMALL)
  for (int64_t b = 0; b < in.B; ++b)
    for (int64_t t = 0; t < in.L; ++t)
      vectors<T>(0, in.D, [&](int64_t d, auto count) {
        Vec<T> total = {};
#pragma GCC unroll 4
        for (int i = 0; i < W; ++i)
          total += load(in.taps.at(i) + d, count) * in.token(b, t + i - (W - 1), d, count);
        store(y.at(b, t) + d, total, count);
      });
}

template <class T, class X, int W>
struct ConvolutionBack : Convolution<T, X, W> {
  View<T> of_y, of_seen, of_taps;
  View<X> of_x;
  explicit ConvolutionBack(Arguments& from)
      : Convolution<T, X, W>(from), of_y(from.tensor<T>()), of_seen(from.tensor<T>()), of_taps(from.tensor<T>()),
        of_x(from.tensor<X>()) {}

  // Row b of the batch, G whole vectors of channels from d, or one of `left` channels.
  template <int G>
  void run(int64_t b, int64_t d, int64_t left) const {
    constexpr int n = Lanes<T>::n;
    const int64_t count = G > 1 ? n : left, ahead = AHEAD * this->D;
    Vec<T> tap[W][G], of_tap[W][G] = {}, given[W][G] = {};  // given: by the outputs of p and those after
    for (int i = 0; i < W; ++i)
      for (int j = 0; j < G; ++j) tap[i][j] = load(this->taps.at(i) + d + j * n, count);
    for (int64_t p = this->L - 1; p > -W; --p) {
      if (p >= 0) {
        ask_for(of_y.at(b, p) + d - ahead, G * n);
        ask_for(this->x.at(b, p) + d - ahead, G * n);
        ask_for<1>(of_x.at(b, p) + d - ahead, G * n);
      }
#pragma GCC unroll 2
      for (int j = 0; j < G; ++j) {
        const int64_t at = d + j * n;
#pragma GCC unroll 4
        for (int i = W - 1; i > 0; --i) given[i][j] = given[i - 1][j];
        given[0][j] = p < 0 ? Vec<T>{} : load(of_y.at(b, p) + at, count);
        const Vec<T> token = this->token(b, p, at, count);
        Vec<T> total = {};
#pragma GCC unroll 4
        for (int i = 0; i < W; ++i) {  // tap i reads token p for the output of p + W - 1 - i
          const Vec<T> g = given[W - 1 - i][j];
          total += tap[i][j] * g, of_tap[i][j] += token * g;
        }
        if (p < 0) store(of_seen.at(b, p + W - 1) + at, total, count);
        else write(of_x.at(b, p) + at, total, count);
      }
    }
    for (int i = 0; i < W; ++i)
      for (int j = 0; j < G; ++j) store(of_taps.at(b, i) + d + j * n, of_tap[i][j], count);
  }
};

template <class T, class X, int W>
void convolve_back(Arguments from) {
  const ConvolutionBack<T, X, W> by(from);
  in_groups<T, 2>(by.B, by.L, by.D, [&](auto group, int64_t b, int64_t d, int64_t left) {
    by.template run<group.value>(b, d, left);
  });
}

// Calls f(W): the number of taps is known when a kernel is compiled.
template <class F>
void with_taps(int64_t W, F f) {
  if (W == 4) f(std::integral_constant<int, 4>());
  else if (W == 3) f(std::integral_constant<int, 3>());
  else f(std::integral_constant<int, 2>());
}

template <class T, class X>
void convolve(Arguments from) {
  with_taps(from.number(), [&](auto W) { convolve<T, X, W.value>(from); });
}

template <class T, class X>
void convolve_back(Arguments from) {
  with_taps(from.number(), [&](auto W) { convolve_back<T, X, W.value>(from); });
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
void causal_conv_forward_float32(const int64_t* from) { convolve<float, float>(Arguments(from)); }
void causal_conv_forward_float64(const int64_t* from) { convolve<double, double>(Arguments(from)); }
void causal_conv_forward_bfloat16(const int64_t* from) { convolve<float, BFloat16>(Arguments(from)); }
void causal_conv_backward_float32(const int64_t* from) { convolve_back<float, float>(Arguments(from)); }
void causal_conv_backward_float64(const int64_t* from) { convolve_back<double, double>(Arguments(from)); }
void causal_conv_backward_bfloat16(const int64_t* from) { convolve_back<float, BFloat16>(Arguments(from)); }
}
