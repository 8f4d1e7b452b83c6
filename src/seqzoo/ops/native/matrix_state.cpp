// Recurrences of a matrix state, token by token, the state of a head in the first-level cache.
// The equations are those of seqzoo/ops/matrix_state.py.
#include "common.h"

namespace {

constexpr int64_t SEGMENT = 32;  // tokens between two states that the forward pass keeps
constexpr int64_t SMALL = 1 << 14;  // products below which a second thread costs more than it saves

template <class T>
struct Inputs {
  int64_t B, H, L, K, V, W;  // rows, heads, tokens, sizes of keys and values; W: 1, or K decays
  View<T> q, k, v, log_w, a, b, u, S;
  explicit Inputs(Arguments& from)
      : B(from.number()), H(from.number()), L(from.number()), K(from.number()), V(from.number()),
        W(from.number()), q(from.tensor<T>()), k(from.tensor<T>()), v(from.tensor<T>()),
        log_w(from.tensor<T>()), a(from.tensor<T>()), b(from.tensor<T>()), u(from.tensor<T>()),
        S(from.tensor<T>()) {}
};

// One token's vectors over the keys, with zeros up to a whole number of vectors.
template <class T>
struct Token {
  T *q, *k, *w, *a, *b;
  int64_t padded;
  Buffer<T> memory;
  explicit Token(int64_t padded) : padded(padded), memory(5 * padded) {
    q = memory;
    k = q + padded, w = k + padded, a = w + padded, b = a + padded;
  }
  void read(const Inputs<T>& in, int64_t i, int64_t h, int64_t t) {
    copy<T>(in.q.at(i, h, t), in.K, q);
    copy<T>(in.k.at(i, h, t), in.K, k);
    const T* log_w = in.log_w.at(i, h, t);
    for (int64_t p = 0; p < padded; p += Lanes<T>::n)
      store(w + p, exp_of_negative<T>(in.W == 1 ? Vec<T>{} + *log_w : load(log_w + p, in.K - p)));
    if (!in.a) return;
    copy<T>(in.a.at(i, h, t), in.K, a);
    copy<T>(in.b.at(i, h, t), in.K, b);
  }
};

// ---- forward: columns of S are independent, so a block of them is read over all tokens

template <class T, int N, bool DELTA, bool BONUS>
void forward_columns(const Inputs<T>& in, int64_t i, int64_t h, int64_t first, View<T> y, View<T> end,
                     View<T> x, View<T> kept) {
  constexpr int n = Lanes<T>::n, width = N * n;
  const int64_t columns = std::min<int64_t>(width, in.V - first), K = in.K;
  Token<T> token(round_up(K, n));
  Buffer<T> S(K * width), own(3 * width);
  T *value = own, *out = value + width, *read = out + width;
  for (int64_t r = 0; r < K; ++r) copy<T>(in.S.at(i, h, r) + first, columns, S + r * width);
  for (int64_t t = 0; t < in.L; ++t) {
    if (kept && t % SEGMENT == 0)
      for (int64_t r = 0; r < K; ++r)
        copy<T>(S + r * width, columns, kept.at(i, h, t / SEGMENT) + r * in.V + first);
    token.read(in, i, h, t);
    copy<T>(in.v.at(i, h, t) + first, columns, value);
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
        if (x) store(read + c * n, xs[c]);
      }
      if (x) copy<T>(read, columns, x.at(i, h, t) + first);
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
      store(out + c * n, ys[0][c]);
    }
    copy<T>(out, columns, y.at(i, h, t) + first);
  }
  for (int64_t r = 0; r < K; ++r) copy<T>(S + r * width, columns, end.at(i, h, r) + first);
}

template <class T, int N>
void forward_blocks(const Inputs<T>& in, View<T> y, View<T> end, View<T> x, View<T> kept) {
  constexpr int64_t width = N * Lanes<T>::n;
  const int64_t blocks = (in.V + width - 1) / width, jobs = in.B * in.H * blocks;
  auto columns = in.a ? (in.u ? forward_columns<T, N, true, true> : forward_columns<T, N, true, false>)
                      : (in.u ? forward_columns<T, N, false, true> : forward_columns<T, N, false, false>);
#pragma omp parallel for if (in.B * in.H * in.L * in.K * in.V > SMALL)
  for (int64_t job = 0; job < jobs; ++job) {
    const int64_t head = job / blocks;
    columns(in, head / in.H, head % in.H, job % blocks * width, y, end, x, kept);
  }
}

template <class T>
void forward(Arguments from) {
  Inputs<T> in(from);
  auto y = from.tensor<T>(), end = from.tensor<T>(), x = from.tensor<T>(), kept = from.tensor<T>();
  const int64_t vectors = (in.V + Lanes<T>::n - 1) / Lanes<T>::n;
  if (vectors == 1) forward_blocks<T, 1>(in, y, end, x, kept);
  else if (vectors == 3) forward_blocks<T, 3>(in, y, end, x, kept);
  else if (vectors % 4 == 0) forward_blocks<T, 4>(in, y, end, x, kept);
  else forward_blocks<T, 2>(in, y, end, x, kept);
}

// ---- backward: a row here is a column of S, so that sums over values need no shuffling

template <class T>
struct Gradients {
  View<T> y, end;                  // given
  View<T> x, kept;                 // by the forward pass
  View<T> q, k, v, log_w, a, b, u, S;  // to be written
  explicit Gradients(Arguments& from)
      : y(from.tensor<T>()), end(from.tensor<T>()), x(from.tensor<T>()), kept(from.tensor<T>()),
        q(from.tensor<T>()), k(from.tensor<T>()), v(from.tensor<T>()), log_w(from.tensor<T>()),
        a(from.tensor<T>()), b(from.tensor<T>()), u(from.tensor<T>()), S(from.tensor<T>()) {}
};

template <class T, int N, bool DELTA, bool BONUS, bool DECAY>
void backward_head(const Inputs<T>& in, const Gradients<T>& out, int64_t i, int64_t h) {
  constexpr int n = Lanes<T>::n, width = N * n;
  const int64_t K = in.K, V = in.V, padded = round_up(K, width), size = V * padded;
  const int64_t most = std::min(SEGMENT, in.L);
  std::vector<Token<T>> tokens;
  for (int64_t t = 0; t < most; ++t) tokens.emplace_back(padded);
  Buffer<T> states((most + 1) * size), D(size), totals(5 * padded), of_u(padded), of_x(V);
  Buffer<T> partial(2 * V * n);
  T *dq = totals, *dk = dq + padded, *dw = dk + padded, *da = dw + padded, *db = da + padded;
  for (int64_t r = 0; r < K; ++r)
    for (int64_t j = 0; j < V; ++j) D[j * padded + r] = out.end.at(i, h, r)[j];

  for (int64_t start = (in.L - 1) / SEGMENT * SEGMENT; start >= 0; start -= SEGMENT) {
    const int64_t length = std::min(SEGMENT, in.L - start);
    for (int64_t r = 0; r < K; ++r)
      for (int64_t j = 0; j < V; ++j)
        states[j * padded + r] = out.kept.at(i, h, start / SEGMENT)[r * V + j];
    for (int64_t t = 0; t < length; ++t) {
      Token<T>& token = tokens[t];
      token.read(in, i, h, start + t);
      const T *before = states + t * size, *v = in.v.at(i, h, start + t);
      const T* x = DELTA ? out.x.at(i, h, start + t) : nullptr;
      T* after = states + (t + 1) * size;
      for (int64_t p = 0; p < padded; p += n) {
        const Vec<T> w = load(token.w + p), k = load(token.k + p), a = load(token.a + p);
        for (int64_t j = 0; j < V; ++j) {
          Vec<T> s = w * load(before + j * padded + p) + k * v[j];
          if (DELTA) s += a * x[j];
          store(after + j * padded + p, s);
        }
      }
    }
    for (int64_t t = length - 1; t >= 0; --t) {
      const Token<T>& token = tokens[t];
      const T *before = states + t * size, *after = before + size;
      const T *v = in.v.at(i, h, start + t), *dy = out.y.at(i, h, start + t);
      const T* x = DELTA ? out.x.at(i, h, start + t) : nullptr;
      T* dv = out.v.at(i, h, start + t);
      for (int64_t p = 0; p < padded; p += width) {
        const bool first = p == 0, last = p + width == padded;
        Vec<T> q[N], k[N], w[N], a[N], q_sum[N] = {}, k_sum[N] = {}, w_sum[N] = {}, a_sum[N] = {};
        for (int c = 0; c < N; ++c) {
          q[c] = load(token.q + p + c * n), k[c] = load(token.k + p + c * n);
          w[c] = load(token.w + p + c * n), a[c] = load(token.a + p + c * n);
        }
        for (int64_t j = 0; j < V; ++j) {
          Vec<T> of_v = {}, of_xj = {};
          if (!first) of_v = load(partial + 2 * j * n), of_xj = load(partial + (2 * j + 1) * n);
          for (int c = 0; c < N; ++c) {
            const int64_t place = j * padded + p + c * n;
            Vec<T> d = load(D + place);
            const Vec<T> s = load(before + place);
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
          if (last) {
            if (DELTA) sums<T>(of_v, of_xj, dv + j, of_x + j);
            else dv[j] = sum<T>(of_v);
          } else {
            store(partial + 2 * j * n, of_v), store(partial + (2 * j + 1) * n, of_xj);
          }
        }
        for (int c = 0; c < N; ++c) {
          store(dq + p + c * n, q_sum[c]), store(dk + p + c * n, k_sum[c]);
          if (DECAY) store(dw + p + c * n, w_sum[c] * w[c]);
          if (DELTA) store(da + p + c * n, a_sum[c]);
        }
      }
      if (DELTA)
        for (int64_t p = 0; p < padded; p += width) {
          Vec<T> b[N], b_sum[N] = {};
          for (int c = 0; c < N; ++c) b[c] = load(token.b + p + c * n);
          for (int64_t j = 0; j < V; ++j)
            for (int c = 0; c < N; ++c) {
              const int64_t place = j * padded + p + c * n;
              store(D + place, load(D + place) + b[c] * of_x[j]);
              b_sum[c] += of_x[j] * load(before + place);
            }
          for (int c = 0; c < N; ++c) store(db + p + c * n, b_sum[c]);
        }
      if (BONUS) {
        const T* u = in.u.at(h);
        T of_values = 0, of_keys = 0;
        for (int64_t j = 0; j < V; ++j) of_values += v[j] * dy[j];
        for (int64_t r = 0; r < K; ++r) {
          of_keys += token.q[r] * u[r] * token.k[r];
          dq[r] += u[r] * token.k[r] * of_values;
          dk[r] += token.q[r] * u[r] * of_values;
          of_u[r] += token.q[r] * token.k[r] * of_values;
        }
        for (int64_t j = 0; j < V; ++j) dv[j] += of_keys * dy[j];
      }
      copy<T>(dq, K, out.q.at(i, h, start + t));
      copy<T>(dk, K, out.k.at(i, h, start + t));
      if (DECAY) {
        T* to = out.log_w.at(i, h, start + t);
        if (in.W == 1) {
          *to = 0;
          for (int64_t r = 0; r < K; ++r) *to += dw[r];
        } else {
          copy<T>(dw, K, to);
        }
      }
      if (DELTA) {
        copy<T>(da, K, out.a.at(i, h, start + t));
        copy<T>(db, K, out.b.at(i, h, start + t));
      }
    }
  }
  if (BONUS) copy<T>(of_u, K, out.u.at(i, h));
  for (int64_t r = 0; r < K; ++r)
    for (int64_t j = 0; j < V; ++j) out.S.at(i, h, r)[j] = D[j * padded + r];
}

template <class T, int N, bool DELTA, bool BONUS>
void backward_heads(const Inputs<T>& in, const Gradients<T>& out) {
  auto head = out.log_w ? backward_head<T, N, DELTA, BONUS, true> : backward_head<T, N, DELTA, BONUS, false>;
#pragma omp parallel for if (in.B * in.H * in.L * in.K * in.V > SMALL)
  for (int64_t job = 0; job < in.B * in.H; ++job) head(in, out, job / in.H, job % in.H);
}

template <class T, int N>
void backward_choose(const Inputs<T>& in, const Gradients<T>& out) {
  if (in.a && in.u) backward_heads<T, N, true, true>(in, out);
  else if (in.a) backward_heads<T, N, true, false>(in, out);
  else if (in.u) backward_heads<T, N, false, true>(in, out);
  else backward_heads<T, N, false, false>(in, out);
}

template <class T>
void backward(Arguments from) {
  Inputs<T> in(from);
  Gradients<T> out(from);
  if (in.K <= Lanes<T>::n) backward_choose<T, 1>(in, out);
  else backward_choose<T, 2>(in, out);
}

}  // namespace

extern "C" {
void matrix_state_forward_float32(const int64_t* from) { forward<float>(Arguments(from)); }
void matrix_state_forward_float64(const int64_t* from) { forward<double>(Arguments(from)); }
void matrix_state_backward_float32(const int64_t* from) { backward<float>(Arguments(from)); }
void matrix_state_backward_float64(const int64_t* from) { backward<double>(Arguments(from)); }
}
