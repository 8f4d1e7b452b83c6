// The recurrence of a matrix state, token by token, the state of a head in the first-level cache.
// The equations are those of seqzoo/ops/matrix_state.py. A family says where its tokens come from,
// and where outputs and gradients go.
#pragma once
#include "common.h"

namespace matrix_state {

constexpr int64_t SEGMENT = PIECE;  // tokens between two states that the forward pass keeps

// One token of a head, with zeros up to a whole number of vectors: what the recurrence reads, and
// `more` rows for the family. In the backward pass dy is given, and the other gradients are found.
template <class T>
struct Token {
  T *q, *k, *w, *a, *b, *v;
  int64_t padded;
  Buffer<T> memory;
  Token(int64_t padded, int64_t more) : padded(padded), memory((6 + more) * padded) {
    q = memory;
    k = q + padded, w = k + padded, a = w + padded, b = a + padded, v = b + padded;
  }
  T* more(int64_t row) const { return v + (1 + row) * padded; }
};

template <class T>
struct Gradients {
  T *y, *q, *k, *log_w, *a, *b, *v;
  Buffer<T> memory;
  explicit Gradients(int64_t padded) : memory(7 * padded) {
    y = memory;
    q = y + padded, k = q + padded, log_w = k + padded, a = log_w + padded, b = a + padded;
    v = b + padded;
  }
};

template <class T>
struct Family {
  int64_t B, H, L, K, V;           // rows, heads, tokens, sizes of keys and values
  bool delta, bonus, decay;        // whether there are a and b, u, and a gradient of log w
  int64_t more = 0;                // rows of a token that the family needs
  View<T> u{}, S{}, end{}, x{}, kept{};  // x: b_t^T S_{t-1}; kept: the states before each segment
  View<T> of_end{}, of_u{}, of_S{};       // gradients
  // Token t of head h in row i of the batch.
  virtual void read(int64_t i, int64_t h, int64_t t, Token<T>& token) const = 0;
  // Some columns of its output.
  virtual void write(int64_t i, int64_t h, int64_t t, const Token<T>& token, const T* y,
                     int64_t first, int64_t columns) const = 0;
  virtual void read_gradient(int64_t i, int64_t h, int64_t t, Token<T>& token, T* of_y) const = 0;
  virtual void write_gradients(int64_t i, int64_t h, int64_t t, const Token<T>& token,
                               const Gradients<T>& of) const = 0;
  virtual ~Family() = default;
  bool small() const { return B * H * L * K * V <= SMALL; }
};

// ---- forward: columns of S are independent

template <class T, int N, bool DELTA, bool BONUS>
void step(const Family<T>& in, int64_t h, const Token<T>& token, const T* value, T* S, T* read,
          T* y) {
  constexpr int n = Lanes<T>::n, width = N * n;
  const int64_t K = in.K;
  Vec<T> v[N], xs[N] = {}, ys[2][N] = {};
  for (int c = 0; c < N; ++c) v[c] = load(value + c * n);
  if (DELTA) {
    Vec<T> more[N] = {};
    int64_t r = 0;
    for (; r + 1 < K; r += 2)
      for (int c = 0; c < N; ++c) {
        xs[c] += token.b[r] * load(S + r * width + c * n);
        more[c] += token.b[r + 1] * load(S + (r + 1) * width + c * n);
      }
    for (int c = 0; c < N; ++c) {
      if (r < K) xs[c] += token.b[r] * load(S + r * width + c * n);
      xs[c] += more[c];
      store(read + c * n, xs[c]);
    }
  }
  T bonus = 0;
  if (BONUS)
    for (int64_t r = 0; r < K; ++r) bonus += token.q[r] * in.u.at(h)[r] * token.k[r];
  auto row = [&](int64_t r, Vec<T>* y_of_row) {
    for (int c = 0; c < N; ++c) {
      Vec<T> s = load(S + r * width + c * n);
      if (BONUS) y_of_row[c] += token.q[r] * s;
      s = token.w[r] * s + token.k[r] * v[c];
      if (DELTA) s += token.a[r] * xs[c];
      if (!BONUS) y_of_row[c] += token.q[r] * s;
      store(S + r * width + c * n, s);
    }
  };
  int64_t r = 0;
  for (; r + 1 < K; r += 2) row(r, ys[0]), row(r + 1, ys[1]);
  if (r < K) row(r, ys[0]);
  for (int c = 0; c < N; ++c) {
    ys[0][c] += ys[1][c];
    if (BONUS) ys[0][c] += bonus * v[c];
    store(y + c * n, ys[0][c]);
  }
}

// Some columns of a state, `width` of them beside each other.
template <class T>
struct Block {
  T* S;
  int64_t K, first, columns, width;
  [[gnu::noinline]] void from(const T* matrix, int64_t stride) const {
    for (int64_t j = 0; j < columns; j += width)
      for (int64_t r = 0; r < K; ++r)
        copy<T>(matrix + r * stride + first + j, std::min(width, columns - j), S + j * K + r * width);
  }
  [[gnu::noinline]] void to(T* matrix, int64_t stride) const {
    for (int64_t j = 0; j < columns; j += width)
      for (int64_t r = 0; r < K; ++r)
        copy<T>(S + j * K + r * width, std::min(width, columns - j), matrix + r * stride + first + j);
  }
};

// Tokens `begin` to `end` of a head, for some columns of its state: blocks of N vectors. The state
// after them, which the next ones begin with, is in.end.
template <class T, int N, bool DELTA, bool BONUS>
void forward_columns(const Family<T>& in, int64_t i, int64_t h, int64_t first, int64_t columns,
                     int64_t begin, int64_t end) {
  constexpr int64_t width = N * Lanes<T>::n;
  const int64_t padded = round_up(columns, width), K = in.K;
  Token<T> token(round_up(std::max(K, in.V), width), in.more);
  Buffer<T> S(K * padded), y(padded), read(padded);
  const Block<T> block{S, K, first, columns, width};
  const View<T>& given = begin ? in.end : in.S;
  block.from(given.at(i, h), given.stride[2]);
  for (int64_t t = begin; t < end; ++t) {
    if (in.kept && t % SEGMENT == 0) block.to(in.kept.at(i, h, t / SEGMENT), in.V);
    in.read(i, h, t, token);
    for (int64_t j = 0; j < columns; j += width)
      step<T, N, DELTA, BONUS>(in, h, token, token.v + first + j, S + j * K, read + j, y + j);
    if (in.x) copy<T>(read, columns, in.x.at(i, h, t) + first);
    in.write(i, h, t, token, y, first, columns);
  }
  block.to(in.end.at(i, h), in.end.stride[2]);
}

// Whole heads, or blocks of their columns, are shared out to threads.
template <class T, int N, bool DELTA, bool BONUS>
void forward_blocks(const Family<T>& in, bool whole) {
  const int64_t width = whole ? in.V : N * Lanes<T>::n;
  const int64_t blocks = (in.V + width - 1) / width, jobs = in.B * in.H * blocks;
  share_out(jobs, in.L, !in.small(), [&](int64_t job, int64_t begin, int64_t end) {
    const int64_t head = job / blocks, first = job % blocks * width;
    forward_columns<T, N, DELTA, BONUS>(in, head / in.H, head % in.H, first, std::min(width, in.V - first), begin,
                                        end);
  });
}

template <class T, bool DELTA, bool BONUS>
void forward(const Family<T>& in, bool whole) {
  const int64_t vectors = (in.V + Lanes<T>::n - 1) / Lanes<T>::n;
  if (vectors == 1) forward_blocks<T, 1, DELTA, BONUS>(in, whole);
  else if (vectors == 3) forward_blocks<T, 3, DELTA, BONUS>(in, whole);
  else if (vectors == 5) forward_blocks<T, 5, DELTA, BONUS>(in, whole);
  else if (vectors % 4 == 0) forward_blocks<T, 4, DELTA, BONUS>(in, whole);
  else forward_blocks<T, 2, DELTA, BONUS>(in, whole);
}

// ---- backward: a row here is a column of S, so that sums over values need no shuffling

template <class T>
[[gnu::noinline]] void transpose(const T* from, int64_t stride, int64_t rows, int64_t columns, T* to,
                                 int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < columns; ++j) to[j * to_stride + r] = from[r * stride + j];
}

// The state after a token.
template <class T, bool DELTA>
[[gnu::noinline]] void advance(const Token<T>& token, const T* x, const T* before, T* after,
                               int64_t V, int64_t padded) {
  for (int64_t p = 0; p < padded; p += Lanes<T>::n) {
    const Vec<T> w = load(token.w + p), k = load(token.k + p), a = load(token.a + p);
    for (int64_t j = 0; j < V; ++j) {
      Vec<T> s = w * load(before + j * padded + p) + k * token.v[j];
      if (DELTA) s += a * x[j];
      store(after + j * padded + p, s);
    }
  }
}

// What the bonus adds to the gradients of a token.
template <class T>
[[gnu::noinline]] void add_bonus(const Token<T>& token, const T* u, int64_t K, int64_t V,
                                 const Gradients<T>& of, T* of_u) {
  T of_values = 0, of_keys = 0;
  for (int64_t j = 0; j < V; ++j) of_values += token.v[j] * of.y[j];
  for (int64_t r = 0; r < K; ++r) {
    of_keys += token.q[r] * u[r] * token.k[r];
    of.q[r] += u[r] * token.k[r] * of_values;
    of.k[r] += token.q[r] * u[r] * of_values;
    of_u[r] += token.q[r] * token.k[r] * of_values;
  }
  for (int64_t j = 0; j < V; ++j) of.v[j] += of_keys * of.y[j];
}

// What the delta rule of a token adds to the gradients of the state before it and of b, once the
// gradient of x is known.
template <class T>
[[gnu::noinline]] void add_delta(const Token<T>& token, const T* of_x, const T* before, int64_t V,
                                 int64_t padded, T* D, T* of_b) {
  for (int64_t p = 0; p < padded; p += Lanes<T>::n) {
    const Vec<T> b = load(token.b + p);
    Vec<T> b_sum = {};
    for (int64_t j = 0; j < V; ++j) {
      store(D + j * padded + p, load(D + j * padded + p) + b * of_x[j]);
      b_sum += of_x[j] * load(before + j * padded + p);
    }
    store(of_b + p, b_sum);
  }
}

// Tokens `begin` to `end` of a head, the last one first. The gradient of the state before them, which
// the ones before go on with, is in.of_S.
template <class T, int N, bool DELTA, bool BONUS, bool DECAY>
void backward_head(const Family<T>& in, int64_t i, int64_t h, int64_t begin, int64_t end) {
  constexpr int n = Lanes<T>::n, width = N * n;
  const int64_t K = in.K, V = in.V, padded = round_up(K, width), size = V * padded;
  const int64_t most = std::min(SEGMENT, in.L), wide = round_up(std::max(K, V), width);
  std::vector<Token<T>> tokens;
  for (int64_t t = 0; t < most; ++t) tokens.emplace_back(wide, in.more);
  Gradients<T> grads[] = {Gradients<T>(wide), Gradients<T>(wide)};  // of a token, and of the next one
  Buffer<T> states((most + 1) * size), D(size), of_u(padded);
  const int64_t values = round_up(V, n);
  Buffer<T> partial(2 * values * n), of_x(values);  // sums over keys, lane by lane: of v, then of x
  const View<T>& given = end < in.L ? in.of_S : in.of_end;
  transpose<T>(given.at(i, h), given.stride[2], K, V, D, padded);
  if (BONUS && end < in.L) copy<T>(in.of_u.at(i, h), K, of_u);

  for (int64_t start = round_up(end, SEGMENT) - SEGMENT; start >= begin; start -= SEGMENT) {
    const int64_t length = std::min(SEGMENT, end - start);
    transpose<T>(in.kept.at(i, h, start / SEGMENT), V, K, V, states, padded);
    for (int64_t t = 0; t < length; ++t) {
      Token<T>& token = tokens[t];
      in.read(i, h, start + t, token);
      const T* x = DELTA ? in.x.at(i, h, start + t) : nullptr;
      advance<T, DELTA>(token, x, states + t * size, states + (t + 1) * size, V, padded);
    }
    if (DELTA) std::fill_n(static_cast<T*>(of_x), values, T(0));  // the last token has none after it
    for (int64_t t = length - 1; t >= 0; --t) {
      Token<T>& token = tokens[t];
      const Token<T>& next = tokens[std::min(t + 1, length - 1)];
      const Gradients<T>&of = grads[t % 2], &of_next = grads[(t + 1) % 2];
      in.read_gradient(i, h, start + t, token, of.y);
      const T *before = states + t * size, *after = before + size;
      const T *v = token.v, *dy = of.y;
      const T* x = DELTA ? in.x.at(i, h, start + t) : nullptr;
      for (int64_t p = 0; p < padded; p += width) {
        Vec<T> q[N], k[N], w[N], a[N], b[N];
        Vec<T> q_sum[N] = {}, k_sum[N] = {}, w_sum[N] = {}, a_sum[N] = {}, b_sum[N] = {};
        for (int c = 0; c < N; ++c) {
          q[c] = load(token.q + p + c * n), k[c] = load(token.k + p + c * n);
          w[c] = load(token.w + p + c * n), a[c] = load(token.a + p + c * n);
          b[c] = load(next.b + p + c * n);
        }
        for (int64_t j = 0; j < V; ++j) {
          Vec<T> of_v = {}, of_xj = {};
          if (p) of_v = load(partial + j * n), of_xj = load(partial + (values + j) * n);
          for (int c = 0; c < N; ++c) {
            const int64_t place = j * padded + p + c * n;
            Vec<T> d = load(D + place);
            const Vec<T> s = load(before + place);
            if (DELTA) {
              d += b[c] * of_x[j];
              b_sum[c] += of_x[j] * load(after + place);
            }
            if (!BONUS) {
              d += q[c] * dy[j];
              q_sum[c] += dy[j] * load(after + place);
            } else {
              q_sum[c] += dy[j] * s;
            }
            k_sum[c] += v[j] * d;
            of_v += d * k[c];
            if (DECAY) w_sum[c] += d * s;
            if (DELTA) {
              a_sum[c] += x[j] * d;
              of_xj += d * a[c];
            }
            d *= w[c];
            if (BONUS) d += q[c] * dy[j];
            store(D + place, d);
          }
          store(partial + j * n, of_v);
          if (DELTA) store(partial + (values + j) * n, of_xj);
        }
        for (int c = 0; c < N; ++c) {
          store(of.q + p + c * n, q_sum[c]), store(of.k + p + c * n, k_sum[c]);
          if (DECAY) store(of.log_w + p + c * n, w_sum[c] * w[c]);
          if (DELTA) store(of.a + p + c * n, a_sum[c]), store(of_next.b + p + c * n, b_sum[c]);
        }
      }
      for (int64_t j = 0; j < V; j += n) store(of.v + j, sums<T>(partial + j * n));
      if (DELTA && t + 1 < length) in.write_gradients(i, h, start + t + 1, next, of_next);
      if (DELTA)
        for (int64_t j = 0; j < V; j += n) store(of_x + j, sums<T>(partial + (values + j) * n));
      if (BONUS) add_bonus<T>(token, in.u.at(h), K, V, of, of_u);
      if (!DELTA) in.write_gradients(i, h, start + t, token, of);
    }
    if (!DELTA) continue;
    add_delta<T>(tokens[0], of_x, states, V, padded, D, grads[0].b);
    in.write_gradients(i, h, start, tokens[0], grads[0]);
  }
  if (BONUS) copy<T>(of_u, K, in.of_u.at(i, h));
  transpose<T>(D, padded, V, K, in.of_S.at(i, h), in.of_S.stride[2]);
}

// `head` is backward_head or a function like it.
template <class T, class Head>
void backward_heads(const Family<T>& in, Head head) {
  auto part = [&](int64_t job, int64_t begin, int64_t end) { head(in, job / in.H, job % in.H, begin, end); };
  share_out(in.B * in.H, in.L, !in.small(), part, true);
}

template <class T, bool DELTA, bool BONUS>
void backward(const Family<T>& in) {
  const bool narrow = in.K <= Lanes<T>::n;
  if (in.decay) backward_heads(in, narrow ? backward_head<T, 1, DELTA, BONUS, true> : backward_head<T, 2, DELTA, BONUS, true>);
  else backward_heads(in, narrow ? backward_head<T, 1, DELTA, BONUS, false> : backward_head<T, 2, DELTA, BONUS, false>);
}

}  // namespace matrix_state
