// The recurrences of RNN, LSTM and GRU, after the product of the inputs with their weights.
// The equations are those of seqzoo/ops/recurrent.py. T is the type of states and gates, P that of
// the factors of the products: bfloat16 only there, and for what is kept for the backward pass.
#include "recurrent.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

// ---- one token of each cell: gates of the inputs x and of the recurrence s, biases included

template <class T>
struct Token {
  Vec<T> h, c;        // the state before; of an LSTM also c
  Vec<T> kept[5];     // for the backward pass
  Vec<T> y;           // the state after
  Vec<T> dh, dc;      // gradients of the state after; then what the elementwise part gives before
  Vec<T> dx[4], ds;   // gradients of x; ds: of s of a GRU's last gate, that of all others is dx
};

struct Elman {
  static constexpr int gates = 1, kept = 0;
  template <class T>
  static void forward(const Vec<T>* x, const Vec<T>* s, Token<T>& t) { t.y = tanh<T>(x[0] + s[0]); }
  template <class T>
  static void backward(Token<T>& t) {
    t.dx[0] = t.dh * (T(1) - t.y * t.y);
    t.dh = Vec<T>{};
  }
};

struct LSTM {
  static constexpr int gates = 4, kept = 5;
  template <class T>
  static void forward(const Vec<T>* x, const Vec<T>* s, Token<T>& t) {
    const Vec<T> i = sigmoid<T>(x[0] + s[0]), f = sigmoid<T>(x[1] + s[1]);
    const Vec<T> g = tanh<T>(x[2] + s[2]), o = sigmoid<T>(x[3] + s[3]);
    t.kept[0] = i, t.kept[1] = f, t.kept[2] = g, t.kept[3] = o, t.kept[4] = t.c;
    t.c = f * t.c + i * g;
    t.y = o * tanh<T>(t.c);
  }
  template <class T>
  static void backward(Token<T>& t) {
    const Vec<T> i = t.kept[0], f = t.kept[1], g = t.kept[2], o = t.kept[3], c = t.kept[4];
    const Vec<T> out = tanh<T>(f * c + i * g), dc = t.dc + t.dh * o * (T(1) - out * out);
    t.dx[0] = dc * g * i * (T(1) - i);
    t.dx[1] = dc * c * f * (T(1) - f);
    t.dx[2] = dc * i * (T(1) - g * g);
    t.dx[3] = t.dh * out * o * (T(1) - o);
    t.dc = dc * f, t.dh = Vec<T>{};
  }
};

struct GRU {
  static constexpr int gates = 3, kept = 4;
  template <class T>
  static void forward(const Vec<T>* x, const Vec<T>* s, Token<T>& t) {
    const Vec<T> r = sigmoid<T>(x[0] + s[0]), z = sigmoid<T>(x[1] + s[1]);
    const Vec<T> n = tanh<T>(x[2] + r * s[2]);
    t.kept[0] = r, t.kept[1] = z, t.kept[2] = n, t.kept[3] = s[2];
    t.y = (T(1) - z) * n + z * t.h;
  }
  template <class T>
  static void backward(Token<T>& t) {
    const Vec<T> r = t.kept[0], z = t.kept[1], n = t.kept[2], s = t.kept[3];
    t.dx[1] = t.dh * (t.h - n) * z * (T(1) - z);
    t.dx[2] = t.dh * (T(1) - z) * (T(1) - n * n);
    t.ds = t.dx[2] * r;
    t.dx[0] = t.dx[2] * s * r * (T(1) - r);
    t.dh *= z;
  }
};

// ---- a block of rows over all tokens

template <class T, class P>
struct Inputs {
  int64_t B, L, D;
  View<P> x;  // (B, L, G D): the inputs times their weights
  View<T> U, of_x, of_s, h, c;  // of_x, of_s: the two biases
  explicit Inputs(Arguments& from)
      : B(from.number()), L(from.number()), D(from.number()), x(from.tensor<P>()), U(from.tensor<T>()),
        of_x(from.tensor<T>()), of_s(from.tensor<T>()), h(from.tensor<T>()), c(from.tensor<T>()) {}
};

template <class T, class P>
struct Outputs {
  View<T> y, h, c;
  View<P> before, kept;  // for the backward pass: h before each token (B, L, D), and (B, L, ., D)
  explicit Outputs(Arguments& from)
      : y(from.tensor<T>()), h(from.tensor<T>()), c(from.tensor<T>()), before(from.tensor<P>()),
        kept(from.tensor<P>()) {}
};

template <class T, class P>
struct Gradients {
  View<T> y, of_y, of_h, of_c;  // given
  View<P> before, kept;
  View<P> x, s;      // to be written; s: of the recurrence, where it is not that of x
  View<T> bias;      // (B, ., D), to be added up: of x, and of a GRU's ds
  View<T> h, c;
  explicit Gradients(Arguments& from)
      : y(from.tensor<T>()), of_y(from.tensor<T>()), of_h(from.tensor<T>()), of_c(from.tensor<T>()),
        before(from.tensor<P>()), kept(from.tensor<P>()), x(from.tensor<P>()), s(from.tensor<P>()),
        bias(from.tensor<T>()), h(from.tensor<T>()), c(from.tensor<T>()) {}
};

// The R rows from `row`.
template <class Cell, class T, class P>
void forward_rows(const Inputs<T, P>& in, const Outputs<T, P>& out, Matrix<T, P>& U, int64_t row,
                  int64_t R) {
  constexpr int n = Lanes<T>::n, G = Cell::gates;
  const int64_t D = in.D, K = U.K, width = K * G;
  Buffer<T> sums(R * width), h(R * K), c(R * K);
  Buffer<P> factors(R * K);
  each<T>(R, D, [&](int64_t r, int64_t u, int64_t count) {
    const Vec<T> x = load(in.h.at(row + r) + u, count);
    store(h + r * K + u, x), write(factors + r * K + u, x, n);
    if (in.c) store(c + r * K + u, load(in.c.at(row + r) + u, count));
  });
  for (int64_t t = 0; t < in.L; ++t) {
    U.multiply(factors, R, sums, width);
    each<T>(R, D, [&](int64_t r, int64_t u, int64_t count) {
      const int64_t b = row + r;
      const P* given = in.x.at(b, t);
      Vec<T> x[G], s[G];
      for (int g = 0; g < G; ++g) {
        x[g] = read(given + g * D + u, count) + load(in.of_x.data + g * D + u, count);
        s[g] = load(sums + r * width + u * G + g * n) + load(in.of_s.data + g * D + u, count);
      }
      Token<T> token;
      token.h = load(h + r * K + u), token.c = load(c + r * K + u);
      if (out.before) write(out.before.at(b, t) + u, token.h, count);
      Cell::template forward<T>(x, s, token);
      store(h + r * K + u, token.y), store(c + r * K + u, token.c);
      store(out.y.at(b, t) + u, token.y, count);
      write(factors + r * K + u, token.y, n);
      if (out.kept)
        for (int i = 0; i < Cell::kept; ++i) write(out.kept.at(b, t, i) + u, token.kept[i], count);
    });
  }
  each<T>(R, D, [&](int64_t r, int64_t u, int64_t count) {
    store(out.h.at(row + r) + u, load(h + r * K + u), count);
    if (out.c) store(out.c.at(row + r) + u, load(c + r * K + u), count);
  });
}

template <class Cell, class T, class P>
void backward_rows(const Inputs<T, P>& in, const Gradients<T, P>& out, Matrix<T, P>& U, int64_t row,
                   int64_t R) {
  constexpr int n = Lanes<T>::n, G = Cell::gates;
  const bool apart = bool(out.s);
  const int64_t D = in.D, K = U.K, padded = U.padded;
  Buffer<T> sums(R * padded), dh(R * padded), dc(R * padded), bias((G + 1) * padded);
  Buffer<P> factors(R * K);
  each<T>(R, D, [&](int64_t r, int64_t u, int64_t count) {
    if (out.of_h) store(dh + r * padded + u, load(out.of_h.at(row + r) + u, count));
    if (out.of_c) store(dc + r * padded + u, load(out.of_c.at(row + r) + u, count));
  });
  for (int64_t t = in.L - 1; t >= 0; --t) {
    each<T>(R, D, [&](int64_t r, int64_t u, int64_t count) {
      const int64_t b = row + r;
      Token<T> token = {};
      token.dh = load(dh + r * padded + u) + load(sums + r * padded + u);
      token.dc = load(dc + r * padded + u);
      if (out.of_y) token.dh += load(out.of_y.at(b, t) + u, count);
      if (Cell::kept == 0) token.y = load(out.y.at(b, t) + u, count);
      token.h = read(out.before.at(b, t) + u, count);
      for (int i = 0; i < Cell::kept; ++i) token.kept[i] = read(out.kept.at(b, t, i) + u, count);
      Cell::template backward<T>(token);
      store(dh + r * padded + u, token.dh), store(dc + r * padded + u, token.dc);
      for (int g = 0; g < G; ++g) {
        const Vec<T> ds = apart && g == G - 1 ? token.ds : token.dx[g];
        write(out.x.at(b, t) + g * D + u, token.dx[g], count);
        if (apart) write(out.s.at(b, t) + g * D + u, ds, count);
        write(factors + r * K + g * padded + u, ds, n);
        store(bias + g * padded + u, load(bias + g * padded + u) + token.dx[g]);
      }
      if (apart) store(bias + G * padded + u, load(bias + G * padded + u) + token.ds);
    });
    U.multiply(factors, R, sums, padded);
  }
  each<T>(R, D, [&](int64_t r, int64_t u, int64_t count) {
    store(out.h.at(row + r) + u, load(dh + r * padded + u) + load(sums + r * padded + u), count);
    if (out.c) store(out.c.at(row + r) + u, load(dc + r * padded + u), count);
    for (int g = 0; g < G + apart; ++g)
      store(out.bias.at(row + r, g) + u, r ? Vec<T>{} : load(bias + g * padded + u), count);
  });
}

// ---- who computes what

// Runs f(row, R) for blocks of rows of the batch. A thread waits for no other: to share the units of a
// block among threads, which meet at every token, was measured to be faster for one row only.
template <class T, class P, class F>
void in_blocks(int64_t B, int64_t L, Matrix<T, P>& U, F f) {
#pragma omp parallel if (B * L * U.G * U.D * U.D > FEW)
  {
    int64_t threads = 1;
#ifdef _OPENMP
    threads = omp_get_num_threads();
#endif
    const int64_t blocks = round_up((B + ROWS - 1) / ROWS, threads);
#pragma omp for
    for (int64_t panel = 0; panel < U.panels; ++panel) U.pack(panel);
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t row = B * block / blocks, R = B * (block + 1) / blocks - row;
      if (R) f(row, R);
    }
  }
}

template <class Cell, class T, class P>
void forward_cell(Arguments from) {
  const Inputs<T, P> in(from);
  const Outputs<T, P> out(from);
  Matrix<T, P> U(in.U, in.D, Cell::gates, false);
  in_blocks(in.B, in.L, U, [&](int64_t row, int64_t R) { forward_rows<Cell>(in, out, U, row, R); });
}

template <class Cell, class T, class P>
void backward_cell(Arguments from) {
  const Inputs<T, P> in(from);
  const Gradients<T, P> out(from);
  Matrix<T, P> U(in.U, in.D, Cell::gates, true);
  in_blocks(in.B, in.L, U, [&](int64_t row, int64_t R) { backward_rows<Cell>(in, out, U, row, R); });
}

template <class T, class P>
void forward(Arguments from) {
  const int64_t gates = from.number();
  if (gates == 1) forward_cell<Elman, T, P>(from);
  else if (gates == 3) forward_cell<GRU, T, P>(from);
  else forward_cell<LSTM, T, P>(from);
}

template <class T, class P>
void backward(Arguments from) {
  const int64_t gates = from.number();
  if (gates == 1) backward_cell<Elman, T, P>(from);
  else if (gates == 3) backward_cell<GRU, T, P>(from);
  else backward_cell<LSTM, T, P>(from);
}

}  // namespace

extern "C" {
void recurrent_forward_float32(const int64_t* from) { forward<float, float>(Arguments(from)); }
void recurrent_forward_float64(const int64_t* from) { forward<double, double>(Arguments(from)); }
void recurrent_backward_float32(const int64_t* from) { backward<float, float>(Arguments(from)); }
void recurrent_backward_float64(const int64_t* from) { backward<double, double>(Arguments(from)); }
#ifdef __AVX512BF16__
void recurrent_forward_bfloat16(const int64_t* from) { forward<float, BFloat16>(Arguments(from)); }
void recurrent_backward_bfloat16(const int64_t* from) { backward<float, BFloat16>(Arguments(from)); }
#endif
}
