// The recurrences of RNN, LSTM and GRU, after the product of the inputs with their weights.
// The equations are those of seqzoo/ops/recurrent.py. T is the type of states and gates, P that of
// the factors of the products: bfloat16 only there, and for what is kept for the backward pass.
#include "common.h"

#include <atomic>
#include <thread>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t ROWS = 8;     // rows of the batch that a block reads at once
constexpr int PANEL = 3;        // vectors of columns at once: with ROWS, sums fill the registers
constexpr int64_t FEW = 8;      // tokens that are not worth packing the weights for
constexpr int64_t SMALL = 1 << 16;  // products below which a second thread costs more than it saves

// ---- numbers of type P as vectors of T

inline Vec<float> read(const float* p, int64_t count) { return load(p, count); }
inline Vec<double> read(const double* p, int64_t count) { return load(p, count); }
inline void write(float* p, Vec<float> x, int64_t count) { store(p, x, count); }
inline void write(double* p, Vec<double> x, int64_t count) { store(p, x, count); }
inline void round_to(float x, float* to) { *to = x; }
inline void round_to(double x, double* to) { *to = x; }

// sum += one step of a product: `row` holds the numbers of a row, `columns` a vector of columns.
template <class T>
inline void add_product(const T* row, const T* columns, Vec<T>& sum) { sum += *row * load(columns); }

template <class P>
constexpr int64_t step = 1;  // factors that a lane multiplies at once

#ifdef __AVX512BF16__
struct bfloat16 {
  uint16_t bits;
};

template <>
constexpr int64_t step<bfloat16> = 2;

inline Vec<float> read(const bfloat16* p, int64_t count) {
  const __mmask16 mask = count >= 16 ? 0xffff : (1 << count) - 1;
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16);
}

inline void write(bfloat16* p, Vec<float> x, int64_t count) {
  const __mmask16 mask = count >= 16 ? 0xffff : (1 << count) - 1;
  _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh((__m512)x));
}

inline void round_to(float x, bfloat16* to) {
  const __m128bh rounded = _mm_cvtneps_pbh(_mm_set_ss(x));
  std::memcpy(to, &rounded, sizeof *to);
}

inline void add_product(const bfloat16* row, const bfloat16* columns, Vec<float>& sum) {
  int32_t pair;
  std::memcpy(&pair, row, sizeof pair);
  sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(columns),
                                     (__m512bh)_mm512_set1_epi32(pair));
}
#endif

template <class T>
inline Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> e = exp_of_negative<T>(x < T(0) ? x : -x);
  return (x < T(0) ? e : Vec<T>{} + T(1)) / (T(1) + e);
}

template <class T>
inline Vec<T> tanh(Vec<T> x) {
  const Vec<T> e = exp_of_negative<T>(x < T(0) ? x + x : -x - x);
  return (x < T(0) ? e - T(1) : T(1) - e) / (T(1) + e);
}

// ---- the product of a few rows with a matrix

// R rows times N vectors of columns; the vectors of the next K stand `stride` further.
template <class T, class P, int R, int N>
void multiply_panel(const P* rows, int64_t K, const P* panel, int64_t stride, T* out, int64_t width) {
  constexpr int n = Lanes<T>::n, at_once = R * N >= 8 ? 1 : 8 / (R * N) >= 4 ? 4 : 2;
  Vec<T> sum[at_once][R][N] = {};
  for (int64_t k = 0; k < K; k += at_once * step<P>) {
#pragma GCC unroll 4
    for (int i = 0; i < at_once; ++i)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < N; ++c)
          add_product(rows + r * K + k + i * step<P>, panel + i * stride + c * n * step<P>,
                      sum[i][r][c]);
    panel += at_once * stride;
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < N; ++c) {
      for (int i = 1; i < at_once; ++i) sum[0][r][c] += sum[i][r][c];
      store(out + r * width + c * n, sum[0][r][c]);
    }
}

template <class T, class P>
using Multiply = void (*)(const P*, int64_t, const P*, int64_t, T*, int64_t);

template <class T, class P, int N>
constexpr Multiply<T, P> of_rows[ROWS] = {
    multiply_panel<T, P, 1, N>, multiply_panel<T, P, 2, N>, multiply_panel<T, P, 3, N>,
    multiply_panel<T, P, 4, N>, multiply_panel<T, P, 5, N>, multiply_panel<T, P, 6, N>,
    multiply_panel<T, P, 7, N>, multiply_panel<T, P, 8, N>};

// The recurrent weights U (G D, D), as a matrix of K rows. Forward its columns are the G gates of
// each vector of units, backward vectors of the state before.
template <class T, class P>
struct Matrix {
  static constexpr int n = Lanes<T>::n;
  View<T> U;
  int64_t D, G, padded;  // padded: D rounded up to whole vectors
  bool backward;
  int64_t K, a_block;    // a_block: vectors of columns for a vector of units
  bool packed;
  Buffer<P> memory;

  Matrix(View<T> U, int64_t D, int64_t G, bool backward, int64_t tokens)
      : U(U), D(D), G(G), padded(round_up(D, n)), backward(backward), K(backward ? G * padded : padded),
        a_block(backward ? 1 : G), packed(tokens > FEW || D % n || sizeof(P) != sizeof(T)),
        memory(packed ? G * padded * padded : 0) {}

  // Panels of the vectors from `first` to `last`, each with all of its K rows.
  void pack(int64_t first, int64_t last) {
    if (!packed) return;
    for (int64_t start = first; start < last; start += PANEL) {
      const int64_t N = std::min<int64_t>(PANEL, last - start);
      P* panel = memory + start * K * n;
      for (int64_t c = 0; c < N; ++c)
        for (int lane = 0; lane < n; ++lane) {
          const int64_t vector = start + c, unit = vector / a_block * n + lane;
          if (unit >= D) continue;  // zeros
          for (int64_t g = 0; g < (backward ? G : 1); ++g)
            for (int64_t i = 0; i < D; ++i) {
              const int64_t k = g * padded + i;
              const T u = backward ? U.at(g * D + i)[unit] : U.at(vector % a_block * D + unit)[i];
              round_to(u, panel + (k / step<P> * N + c) * n * step<P> + lane * step<P> + k % step<P>);
            }
        }
    }
  }

  // out (R, width): rows (R, K) times the vectors of columns from `first` to `last`.
  void multiply(const P* rows, int64_t R, int64_t first, int64_t last, T* out, int64_t width) {
    if constexpr (sizeof(P) == sizeof(T))
      if (!packed && !backward) return multiply_plainly(rows, R, first, last, out, width);
    for (int64_t start = first; start < last; start += PANEL) {
      const int64_t N = std::min<int64_t>(PANEL, last - start);
      const auto product = (N == 1 ? of_rows<T, P, 1> : N == 2 ? of_rows<T, P, 2> : of_rows<T, P, 3>)[R - 1];
      const P* panel = memory + start * K * n;
      int64_t stride = N * n * step<P>;
      if constexpr (sizeof(P) == sizeof(T))
        if (!packed) panel = U.data + start * n, stride = U.stride[0];
      product(rows, K, panel, stride, out + start * n, width);
    }
  }

 private:
  // With U as it is, whose rows are then as long as the vectors.
  void multiply_plainly(const T* rows, int64_t R, int64_t first, int64_t last, T* out, int64_t width) {
    for (int64_t column = first * n; column < last * n; ++column) {
      const int64_t vector = column / n, unit = vector / G * n + column % n;
      const T* u = U.at(vector % G * D + unit);
      for (int64_t r = 0; r < R; ++r) {
        Vec<T> total = {}, more = {};
        int64_t k = 0;
        for (; k + 2 * n <= K; k += 2 * n) {
          total += load(u + k) * load(rows + r * K + k);
          more += load(u + k + n) * load(rows + r * K + k + n);
        }
        if (k < K) total += load(u + k) * load(rows + r * K + k);
        out[r * width + column] = sum<T>(total + more);
      }
    }
  }
};

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

// Threads wait for each other. They spin, as the next token is microseconds away, and yield then.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait(int64_t& round) {
    if (threads_ == 1) return;
    const int64_t all = ++round * threads_;
    arrived_.fetch_add(1, std::memory_order_acq_rel);
    for (int64_t tries = 0; arrived_.load(std::memory_order_acquire) < all; ++tries)
      if (tries > 4000) std::this_thread::yield();
  }

 private:
  alignas(64) std::atomic<int64_t> arrived_{0};
  int threads_;
};

// The rows of the batch, and the units, that one thread computes. Threads that share rows hand each
// other what the next product reads: two tokens of it, so that one is complete while one is written.
template <class P>
struct Part {
  int64_t row, R, first, last;  // units are counted in vectors
  P* shared;                    // (2, R, K)
  Barrier& barrier;
};

template <class Cell, class T, class P>
void forward_part(const Inputs<T, P>& in, const Outputs<T, P>& out, Matrix<T, P>& U, Part<P> part) {
  constexpr int n = Lanes<T>::n, G = Cell::gates;
  const int64_t D = in.D, R = part.R, K = U.K, width = K * G;
  Buffer<T> sums(R * width), h(R * K), c(R * K);
  int64_t round = 0;
  auto each = [&](auto f) {
    for (int64_t r = 0; r < R; ++r)
      for (int64_t block = part.first; block < part.last; ++block)
        f(r, block * n, std::min<int64_t>(n, D - block * n));
  };
  each([&](int64_t r, int64_t u, int64_t count) {
    const Vec<T> x = load(in.h.at(part.row + r) + u, count);
    store(h + r * K + u, x), write(part.shared + r * K + u, x, n);
    if (in.c) store(c + r * K + u, load(in.c.at(part.row + r) + u, count));
  });
  for (int64_t t = 0; t < in.L; ++t) {
    part.barrier.wait(round);
    const P* now = part.shared + t % 2 * R * K;
    P* next = part.shared + (t + 1) % 2 * R * K;
    U.multiply(now, R, part.first * G, part.last * G, sums, width);
    each([&](int64_t r, int64_t u, int64_t count) {
      const int64_t b = part.row + r;
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
      write(next + r * K + u, token.y, n);
      if (out.kept)
        for (int i = 0; i < Cell::kept; ++i) write(out.kept.at(b, t, i) + u, token.kept[i], count);
    });
  }
  each([&](int64_t r, int64_t u, int64_t count) {
    store(out.h.at(part.row + r) + u, load(h + r * K + u), count);
    if (out.c) store(out.c.at(part.row + r) + u, load(c + r * K + u), count);
  });
}

template <class Cell, class T, class P>
void backward_part(const Inputs<T, P>& in, const Gradients<T, P>& out, Matrix<T, P>& U, Part<P> part) {
  constexpr int n = Lanes<T>::n, G = Cell::gates;
  const bool apart = bool(out.s);
  const int64_t D = in.D, R = part.R, K = U.K, padded = U.padded;
  Buffer<T> sums(R * padded), dh(R * padded), dc(R * padded), bias((G + 1) * padded);
  int64_t round = 0;
  auto each = [&](auto f) {
    for (int64_t r = 0; r < R; ++r)
      for (int64_t block = part.first; block < part.last; ++block)
        f(r, block * n, std::min<int64_t>(n, D - block * n));
  };
  each([&](int64_t r, int64_t u, int64_t count) {
    if (out.of_h) store(dh + r * padded + u, load(out.of_h.at(part.row + r) + u, count));
    if (out.of_c) store(dc + r * padded + u, load(out.of_c.at(part.row + r) + u, count));
  });
  for (int64_t t = in.L - 1; t >= 0; --t) {
    P* now = part.shared + t % 2 * R * K;
    each([&](int64_t r, int64_t u, int64_t count) {
      const int64_t b = part.row + r;
      Token<T> token;
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
        write(now + r * K + g * padded + u, ds, n);
        store(bias + g * padded + u, load(bias + g * padded + u) + token.dx[g]);
      }
      if (apart) store(bias + G * padded + u, load(bias + G * padded + u) + token.ds);
    });
    part.barrier.wait(round);
    U.multiply(now, R, part.first, part.last, sums, padded);
  }
  each([&](int64_t r, int64_t u, int64_t count) {
    store(out.h.at(part.row + r) + u, load(dh + r * padded + u) + load(sums + r * padded + u), count);
    if (out.c) store(out.c.at(part.row + r) + u, load(dc + r * padded + u), count);
    for (int g = 0; g < G + apart; ++g)
      store(out.bias.at(part.row + r, g) + u, r ? Vec<T>{} : load(bias + g * padded + u), count);
  });
}

// ---- who computes what

// Runs f(Part) on all threads. With few rows the threads share them, each with its units, and so
// with its part of U in its cache; with more each has rows of its own, and waits for nobody.
template <class T, class P, class F>
void in_parts(int64_t B, int64_t L, Matrix<T, P>& U, F f) {
  const int64_t units = U.padded / Lanes<T>::n;
  int most = 1;
#ifdef _OPENMP
  if (B * L * U.K * U.a_block > SMALL / Lanes<T>::n) most = omp_get_max_threads();
  if (B * L * U.G * U.D * U.D < SMALL) most = 1;
#endif
  const char* mode = getenv("SEQZOO_RNN_SHARE");
  const bool share = mode ? atoi(mode) >= B : B <= 4;
  const int64_t wanted = share && B <= ROWS ? std::min<int64_t>(most, units) : most;
  Barrier barrier(1), *common = nullptr;
  std::vector<P> none;
  Buffer<P> shared(share ? 2 * B * U.K : 0);
#pragma omp parallel num_threads(wanted) if (wanted > 1)
  {
    int64_t threads = 1, me = 0;
#ifdef _OPENMP
    threads = omp_get_num_threads(), me = omp_get_thread_num();
#endif
    const int64_t total = units * U.a_block;
    if (share && B <= ROWS) {
#pragma omp single
      common = new Barrier(threads);
      const int64_t first = units * me / threads, last = units * (me + 1) / threads;
      U.pack(first * U.a_block, last * U.a_block);
      f(Part<P>{0, B, first, last, shared, *common});
    } else {
      const int64_t panels = (total + PANEL - 1) / PANEL;
      U.pack(panels * me / threads * PANEL, std::min(total, panels * (me + 1) / threads * PANEL));
#pragma omp barrier
      const int64_t blocks = round_up((B + ROWS - 1) / ROWS, std::min(threads, B));
      Buffer<P> own(2 * ROWS * U.K);
#pragma omp for schedule(dynamic)
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t row = B * block / blocks, R = B * (block + 1) / blocks - row;
        if (R) f(Part<P>{row, R, 0, units, own, barrier});
      }
    }
  }
  delete common;
}

template <class Cell, class T, class P>
void forward_cell(Arguments from) {
  const Inputs<T, P> in(from);
  const Outputs<T, P> out(from);
  Matrix<T, P> U(in.U, in.D, Cell::gates, false, in.L);
  in_parts(in.B, in.L, U, [&](Part<P> part) { forward_part<Cell>(in, out, U, part); });
}

template <class Cell, class T, class P>
void backward_cell(Arguments from) {
  const Inputs<T, P> in(from);
  const Gradients<T, P> out(from);
  Matrix<T, P> U(in.U, in.D, Cell::gates, true, in.L);
  in_parts(in.B, in.L, U, [&](Part<P> part) { backward_part<Cell>(in, out, U, part); });
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
void recurrent_forward_bfloat16(const int64_t* from) { forward<float, bfloat16>(Arguments(from)); }
void recurrent_backward_bfloat16(const int64_t* from) { backward<float, bfloat16>(Arguments(from)); }
#endif
}
