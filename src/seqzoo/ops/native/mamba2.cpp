// The Mamba-2 block from its projection to its normalised output: seqzoo/ops/mamba2.py.
#include <cmath>

#include "matrix_state_groups.h"

namespace {

using matrix_state::Gradients;
using matrix_state::Token;

constexpr int64_t TAPS = 4;         // as in seqzoo/ops/mamba2.py
constexpr int64_t BLOCK = 64;       // channels of the convolution that a thread takes at once

// x sigmoid(x), and its derivative.
template <class T>
Vec<T> silu(Vec<T> x) {
  return x * sigmoid<T>(x);
}

template <class T>
Vec<T> slope_of_silu(Vec<T> x) {
  const Vec<T> s = sigmoid<T>(x);
  return s * (T(1) + x * (T(1) - s));
}

// ---- the convolution, and silu

template <class T>
struct Convolution {
  static constexpr int n = Lanes<T>::n;
  int64_t B, L, D;
  Rows<T> x, y, of_x;  // (B, L, D); of y also the gradient
  View<T> seen, taps, bias, of_seen, of_taps, of_bias;  // gradients of taps and bias: a row of the batch

  // The last TAPS tokens of some channels.
  struct Window {
    Buffer<T> memory{TAPS * BLOCK};
    T* at(int64_t t) const { return memory + (t + TAPS) % TAPS * BLOCK; }
  };

  template <class F>
  void each_block(F f) const {  // f(row of the batch, first channel, channels)
    const int64_t blocks = (D + BLOCK - 1) / BLOCK;
#pragma omp parallel for if (B * L * D > SMALL)
    for (int64_t job = 0; job < B * blocks; ++job) {
      const int64_t first = job % blocks * BLOCK;
      f(job / blocks, first, std::min(BLOCK, D - first));
    }
  }
  // The taps, and the bias after them, with zeros up to a whole block.
  Buffer<T> weights(int64_t first, int64_t count) const {
    Buffer<T> own((TAPS + 1) * BLOCK);
    for (int64_t i = 0; i < TAPS; ++i) copy<T>(taps.at(i) + first, count, own + i * BLOCK);
    copy<T>(bias.data + first, count, own + TAPS * BLOCK);
    return own;
  }
  void start(int64_t b, int64_t first, int64_t count, const Window& tokens) const {
    for (int64_t t = 1 - TAPS; t < 0; ++t)
      copy<T>(seen.at(b, t + TAPS - 1) + first, count, tokens.at(t));
  }
  static Vec<T> product(const T* own, T* const* read, int64_t d) {
    Vec<T> total = load(own + TAPS * BLOCK + d);
#pragma GCC unroll 4
    for (int64_t i = 0; i < TAPS; ++i) total += load(own + i * BLOCK + d) * load(read[i] + d);
    return total;
  }
  void forward() const {
    each_block([&](int64_t b, int64_t first, int64_t count) {
      const Buffer<T> own = weights(first, count);
      Buffer<T> out(BLOCK);
      Window tokens;
      start(b, first, count, tokens);
      for (int64_t t = 0; t < L; ++t) {
        x.read(b, t, first, count, tokens.at(t));
        T* const read[] = {tokens.at(t + 1), tokens.at(t + 2), tokens.at(t + 3), tokens.at(t)};
        for (int64_t d = 0; d < count; d += n) store(out + d, silu<T>(product(own, read, d)));
        y.write(out, b, t, first, count);
      }
    });
  }
  // y holds its gradient.
  void backward() const {
    each_block([&](int64_t b, int64_t first, int64_t count) {
      const Buffer<T> own = weights(first, count);
      Buffer<T> of_own((TAPS + 1) * BLOCK), given(BLOCK), out(BLOCK);
      Window tokens, of_sums;  // of_sums: gradients of what silu is taken of
      start(b, first, count, tokens);
      for (int64_t t = 0; t < L + TAPS - 1; ++t) {
        T* const read[] = {tokens.at(t + 1), tokens.at(t + 2), tokens.at(t + 3), tokens.at(t)};
        T *const of[] = {of_sums.at(t), of_sums.at(t - 1), of_sums.at(t - 2), of_sums.at(t - 3)}, *of_sum = of[0];
        if (t < L) {
          x.read(b, t, first, count, tokens.at(t));
          y.read(b, t, first, count, given);
        } else {
          std::fill_n(of_sum, BLOCK, T(0));
        }
        for (int64_t d = 0; d < count; d += n) {
          if (t < L) {
            const Vec<T> g = load(given + d) * slope_of_silu<T>(product(own, read, d));
            store(of_sum + d, g);
#pragma GCC unroll 4
            for (int64_t i = 0; i < TAPS; ++i) {
              T* of_tap = of_own + i * BLOCK + d;
              store(of_tap, load(of_tap) + g * load(read[i] + d));
            }
            store(of_own + TAPS * BLOCK + d, load(of_own + TAPS * BLOCK + d) + g);
          }
          Vec<T> total = {};  // token t - TAPS + 1 was read by tap i for the sum of token t - i
#pragma GCC unroll 4
          for (int64_t i = 0; i < TAPS; ++i) total += load(own + i * BLOCK + d) * load(of[i] + d);
          store(out + d, total);
        }
        const int64_t p = t - TAPS + 1;
        if (p >= 0) of_x.write(out, b, p, first, count);
        else copy<T>(out, count, of_seen.at(b, t) + first);
      }
      for (int64_t i = 0; i < TAPS; ++i) copy<T>(of_own + i * BLOCK, count, of_taps.at(b, i) + first);
      copy<T>(of_own + TAPS * BLOCK, count, of_bias.at(b) + first);
    });
  }
};

// ---- the recurrence

enum Parameter { DT_BIAS, A_LOG, SKIP };  // of a head
enum Row { X, NUMBERS, ROWS };            // of Token::more
enum Number { STEP, SLOPE, LOG_W };       // dt, its derivative, and the log of the decay

template <class T>
struct Recurrence : matrix_state::Family<T> {
  static constexpr int n = Lanes<T>::n;
  int64_t inner;
  View<T> heads, of_heads;  // (3, H), and for each row of the batch
  Rows<T> dt, xBC, y, of_dt, of_xBC, of_y;
  Rows<T> of_shared;  // (B, H, L, 2 N): gradients of B and C by head

  void sizes(int64_t rows, int64_t tokens, int64_t n_heads, int64_t state, int64_t head) {
    this->B = rows, this->L = tokens, this->H = n_heads, this->K = state, this->V = head;
    this->delta = this->bonus = false, this->decay = true;
    this->more = ROWS;
    inner = n_heads * head;
  }
  void read(int64_t i, int64_t h, int64_t t, Token<T>& token) const override {
    T *numbers = token.more(NUMBERS), *x = token.more(X);
    dt.read(i, t, h, 1, numbers);
    xBC.read(i, t, h * this->V, this->V, x);
    xBC.read(i, t, inner, this->K, token.k);
    xBC.read(i, t, inner + this->K, this->K, token.q);
    const T raw = numbers[0] + heads.at(DT_BIAS)[h], e = std::exp(std::min(raw, T(20)));
    const T step = raw > 20 ? raw : std::log1p(e);  // softplus
    numbers[STEP] = step;
    numbers[SLOPE] = raw > 20 ? T(1) : e / (1 + e);
    numbers[LOG_W] = -std::exp(heads.at(A_LOG)[h]) * step;
    for (int64_t p = 0; p < this->V; p += n) store(token.v + p, Vec<T>(step * load(x + p)));
    const Vec<T> w = exp_of_negative<T>(Vec<T>{} + numbers[LOG_W]);
    for (int64_t p = 0; p < this->K; p += n) store(token.w + p, w);
  }
  void write(int64_t i, int64_t h, int64_t t, const Token<T>& token, const T* from, int64_t,
             int64_t) const override {
    T* x = token.more(X);
    const T skip = heads.at(SKIP)[h];
    for (int64_t p = 0; p < this->V; p += n) store(x + p, Vec<T>(load(from + p) + skip * load(x + p)));
    y.write(x, i, t, h * this->V, this->V);
  }
  void read_gradient(int64_t i, int64_t h, int64_t t, Token<T>&, T* to) const override {
    of_y.read(i, t, h * this->V, this->V, to);
  }
  void write_gradients(int64_t i, int64_t h, int64_t t, const Token<T>& token,
                       const Gradients<T>& of) const override {
    const T *numbers = token.more(NUMBERS), *x = token.more(X), skip = heads.at(SKIP)[h];
    Vec<T> of_step = {}, of_log_w = {}, of_skip = {};
    for (int64_t p = 0; p < this->V; p += n) {
      of_step += load(of.v + p) * load(x + p);
      of_skip += load(of.y + p) * load(x + p);
      store(of.v + p, Vec<T>(numbers[STEP] * load(of.v + p) + skip * load(of.y + p)));
    }
    for (int64_t p = 0; p < this->K; p += n) of_log_w += load(of.log_w + p);
    const T by_decay = sum<T>(of_log_w), A = -std::exp(heads.at(A_LOG)[h]);
    of.a[0] = (sum<T>(of_step) + by_decay * A) * numbers[SLOPE];
    of_heads.at(i, DT_BIAS)[h] += of.a[0];
    of_heads.at(i, A_LOG)[h] += by_decay * numbers[LOG_W];
    of_heads.at(i, SKIP)[h] += sum<T>(of_skip);
    of_dt.write(of.a, i, t, h, 1);
    of_xBC.write(of.v, i, t, h * this->V, this->V);
    of_shared.write(of.k, i, h, t, this->K);
    of_shared.write(of.q, i, h, t, this->K, this->K);
  }
  // The gradients of B and C, which all heads read.
  void add_shared() const {
    const int64_t n_shared = 2 * this->K;
#pragma omp parallel for collapse(2) if (this->B * this->H * this->L * n_shared > SMALL)
    for (int64_t i = 0; i < this->B; ++i)
      for (int64_t t = 0; t < this->L; ++t)
        vectors<T>(0, n_shared, [&](int64_t d, auto count) {
          Vec<T> total = {};
          for (int64_t h = 0; h < this->H; ++h) total += load(of_shared.wide.at(i, h, t) + d, count);
          store(of_xBC.wide.at(i, t) + inner + d, total, count);
        });
  }
};

// ---- the gate, and the norm

template <class T>
struct Norm {
  static constexpr int n = Lanes<T>::n;
  int64_t B, L, D;
  T eps;
  Rows<T> y, z, out, of_y, of_z, of_out;  // (B, L, D)
  View<T> scale, of_scale;                // of_scale: of each part of the tokens

  struct Token {
    T *y, *z, *open, *given;  // open: sigmoid(z)
    Buffer<T> memory;
    explicit Token(int64_t padded) : memory(4 * padded) {
      y = memory, z = y + padded, open = z + padded, given = open + padded;
    }
  };

  template <class F>
  void each_token(int64_t parts, F f) const {  // f(part, row of the batch, t, token, its inverse size)
#pragma omp parallel for if (B * L * D > SMALL)
    for (int64_t part = 0; part < parts; ++part) {
      const Token token(round_up(D, n));
      for (int64_t at = B * L * part / parts; at < B * L * (part + 1) / parts; ++at) {
        const int64_t b = at / L, t = at % L;
        y.read(b, t, 0, D, token.y), z.read(b, t, 0, D, token.z);
        Vec<T> squares = {};
        for (int64_t p = 0; p < D; p += n) {
          const Vec<T> open = sigmoid<T>(load(token.z + p));
          const Vec<T> gated = load(token.y + p) * load(token.z + p) * open;
          squares += gated * gated;
          store(token.open + p, open);
        }
        f(part, b, t, token, 1 / std::sqrt(sum<T>(squares) / D + eps));
      }
    }
  }
  static Vec<T> gated(const Token& token, int64_t p) {
    return load(token.y + p) * load(token.z + p) * load(token.open + p);
  }
  void forward(int64_t parts) const {
    each_token(parts, [&](int64_t, int64_t b, int64_t t, const Token& token, T inverse) {
      vectors<T>(0, D, [&](int64_t p, auto count) {
        store(token.y + p, Vec<T>(gated(token, p) * inverse * load(scale.data + p, count)));
      });
      out.write(token.y, b, t, 0, D);
    });
  }
  void backward(int64_t parts) const {
    each_token(parts, [&](int64_t part, int64_t b, int64_t t, const Token& token, T inverse) {
      of_out.read(b, t, 0, D, token.given);
      Vec<T> along = {};
      vectors<T>(0, D, [&](int64_t p, auto count) {
        const Vec<T> unit = gated(token, p) * inverse, given = load(token.given + p);
        const Vec<T> of_unit = given * load(scale.data + p, count);
        T* to = of_scale.at(part) + p;
        store(to, Vec<T>(load(to, count) + given * unit), count);
        along += of_unit * unit;
        store(token.given + p, of_unit);
      });
      const T slope = sum<T>(along) / D;
      for (int64_t p = 0; p < D; p += n) {
        const Vec<T> x = load(token.y + p), own = load(token.z + p), s = load(token.open + p);
        const Vec<T> of_gated = inverse * (load(token.given + p) - slope * inverse * x * own * s);
        store(token.y + p, Vec<T>(of_gated * own * s));
        store(token.z + p, Vec<T>(of_gated * x * s * (T(1) + own * (T(1) - s))));
      }
      of_y.write(token.y, b, t, 0, D), of_z.write(token.z, b, t, 0, D);
    });
  }
};

template <class T>
struct Block {
  Convolution<T> conv;
  Recurrence<T> sums;
  Norm<T> norm;
  int64_t parts;

  explicit Block(Arguments& from) {
    const int64_t B = from.number(), L = from.number(), H = from.number();
    const int64_t N = from.number(), P = from.number();
    conv.B = norm.B = B, conv.L = norm.L = L;
    conv.D = H * P + 2 * N, norm.D = H * P;
    sums.sizes(B, L, H, N, P);
    parts = from.number();
    norm.eps = from.real();
    norm.z = Rows<T>(from, 1), conv.x = Rows<T>(from, 1), sums.dt = Rows<T>(from, 1);
    conv.seen = from.tensor<T>(), sums.S = from.tensor<T>();
    conv.taps = from.tensor<T>(), conv.bias = from.tensor<T>(), sums.heads = from.tensor<T>();
    norm.scale = from.tensor<T>();
    sums.xBC = conv.y = Rows<T>(from, 1);  // after the convolution
    sums.y = norm.y = Rows<T>(from, 1);
    sums.kept = from.tensor<T>();
  }
};

template <class T>
void forward(Arguments from) {
  Block<T> in(from);
  in.norm.out = Rows<T>(from, 1), in.sums.end = from.tensor<T>();
  in.conv.forward();
  matrix_state::grouped_forward<T>(in.sums, true);
  in.norm.forward(in.parts);
}

template <class T>
void backward(Arguments from) {
  Block<T> in(from);
  in.norm.of_out = Rows<T>(from, 1), in.sums.of_end = from.tensor<T>();
  in.norm.of_z = Rows<T>(from, 1), in.conv.of_x = Rows<T>(from, 1), in.sums.of_dt = Rows<T>(from, 1, -8);
  in.conv.of_seen = from.tensor<T>(), in.sums.of_S = from.tensor<T>();
  in.conv.of_taps = from.tensor<T>(), in.conv.of_bias = from.tensor<T>();
  in.sums.of_heads = from.tensor<T>(), in.norm.of_scale = from.tensor<T>();
  in.sums.of_y = in.norm.of_y = Rows<T>(from, 1);
  in.sums.of_xBC = in.conv.y = Rows<T>(from, 1);
  in.sums.of_shared = Rows<T>(from, 2, -8);
  for (auto* rows : {&in.sums.of_y, &in.sums.of_xBC}) rows->ahead = -rows->ahead;  // from the last token on
  in.norm.backward(in.parts);
  matrix_state::grouped_backward<T>(in.sums);
  in.sums.add_shared();
  in.conv.backward();
}

}  // namespace

extern "C" {
void mamba2_forward_float32(const int64_t* from) { forward<float>(Arguments(from)); }
void mamba2_forward_float64(const int64_t* from) { forward<double>(Arguments(from)); }
void mamba2_backward_float32(const int64_t* from) { backward<float>(Arguments(from)); }
void mamba2_backward_float64(const int64_t* from) { backward<double>(Arguments(from)); }
}
