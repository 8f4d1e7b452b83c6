// The recurrence without the delta rule and without a bonus, four tokens at a time: the state is
// read and written once for them, and what they are to each other is a triangle of 4 x 4 products.
//
// Of tokens 1 to 4, with the state S_0 before them and W_ij = diag(w_{j+1} ... w_i),
//
//   S_4 = W_40 S_0 + sum_j W_4j k_j v_j^T
//   y_i = (W_i0 q_i)^T S_0 + sum_{j <= i} (q_i^T W_ij k_j) v_j
//
// Decays are only multiplied, never divided by.
#pragma once
#include "matrix_state.h"

namespace matrix_state {

constexpr int64_t GROUP = 4;

// Products of the pairs (i, j) of a group, j <= i: f(i, j) gives the vectors to be summed.
template <class T>
struct Triangle {
  static constexpr int n = Lanes<T>::n;
  Vec<T> pairs[GROUP * GROUP] = {};
  void to(T* products) const {
    alignas(64) T flat[GROUP * GROUP * n];
    for (int64_t m = 0; m < GROUP * GROUP; ++m) store(flat + m * n, pairs[m]);
    for (int64_t m = 0; m < GROUP * GROUP; m += n) store(products + m, sums<T>(flat + m * n));
  }
};

// Rows of K numbers of a group: W_i0 q_i, W_4i k_i and W_40; and the products q_i^T W_ij k_j.
template <class T>
struct Group {
  int64_t padded;
  Buffer<T> memory;
  explicit Group(int64_t padded) : padded(padded), memory((2 * GROUP + 1) * padded + GROUP * GROUP) {}
  T* q(int64_t i) const { return memory + i * padded; }
  T* k(int64_t i) const { return memory + (GROUP + i) * padded; }
  T* w() const { return memory + 2 * GROUP * padded; }
  T* products() const { return w() + padded; }

  [[gnu::noinline]] void from(const Token<T>* tokens) const {
    Triangle<T> triangle;
    for (int64_t p = 0; p < padded; p += Lanes<T>::n) {
      Vec<T> w[GROUP], q[GROUP], decay = Vec<T>{} + T(1);
#pragma GCC unroll 4
      for (int i = 0; i < GROUP; ++i) {
        w[i] = load(tokens[i].w + p), q[i] = load(tokens[i].q + p);
        decay *= w[i];
        store(this->q(i) + p, Vec<T>(decay * q[i]));
      }
      store(this->w() + p, decay);
#pragma GCC unroll 4
      for (int j = 0; j < GROUP; ++j) {
        Vec<T> k = load(tokens[j].k + p);
#pragma GCC unroll 4
        for (int i = j; i < GROUP; ++i) {
          if (i > j) k *= w[i];
          triangle.pairs[i * GROUP + j] += q[i] * k;
        }
        store(this->k(j) + p, k);
      }
    }
    triangle.to(products());
  }
};

// Tokens `first` to `first` + 4; behind the last one some that leave the state as it is.
template <class T>
void read_group(const Family<T>& in, int64_t i, int64_t h, int64_t first, Token<T>* tokens) {
  for (int64_t g = 0; g < GROUP; ++g) {
    Token<T>& token = tokens[g];
    if (first + g < in.L) {
      in.read(i, h, first + g, token);
      continue;
    }
    std::fill_n(token.w, in.K, T(1));
    std::fill_n(token.q, in.K, T(0)), std::fill_n(token.k, in.K, T(0)), std::fill_n(token.v, in.V, T(0));
  }
}

// ---- forward

template <class T>
void grouped_columns(const Family<T>& in, int64_t i, int64_t h, int64_t first, int64_t columns,
                     int64_t begin, int64_t end) {
  constexpr int n = Lanes<T>::n;
  const int64_t padded = round_up(columns, n), K = in.K, rows = round_up(K, n);
  std::vector<Token<T>> tokens;
  for (int64_t g = 0; g < GROUP; ++g) tokens.emplace_back(round_up(std::max(K, in.V), n), in.more);
  const Group<T> group(rows);
  Buffer<T> S(K * padded), y(GROUP * padded);
  const Block<T> block{S, K, first, columns, n};
  const View<T>& given = begin ? in.end : in.S;
  block.from(given.at(i, h), given.stride[2]);
  for (int64_t t = begin; t < end; t += GROUP) {
    if (in.kept && t % SEGMENT == 0) block.to(in.kept.at(i, h, t / SEGMENT), in.V);
    read_group(in, i, h, t, tokens.data());
    group.from(tokens.data());
    const T *q = group.q(0), *k = group.k(0), *w = group.w();
    for (int64_t d = 0; d < columns; d += n) {
      Vec<T> v[GROUP], ys[GROUP] = {};
#pragma GCC unroll 4
      for (int g = 0; g < GROUP; ++g) v[g] = load(tokens[g].v + first + d);
      T* column = S + d * K;
      for (int64_t r = 0; r < K; ++r) {
        Vec<T> s = load(column + r * n);
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; ++g) ys[g] += q[g * rows + r] * s;
        s *= w[r];
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; ++g) s += k[g * rows + r] * v[g];
        store(column + r * n, s);
      }
#pragma GCC unroll 4
      for (int g = 0; g < GROUP; ++g) {
#pragma GCC unroll 4
        for (int j = 0; j <= g; ++j) ys[g] += group.products()[g * GROUP + j] * v[j];
        store(y + g * padded + d, ys[g]);
      }
    }
    for (int64_t g = 0; g < std::min(GROUP, in.L - t); ++g)
      in.write(i, h, t + g, tokens[g], y + g * padded, first, columns);
  }
  block.to(in.end.at(i, h), in.end.stride[2]);
}

template <class T>
void grouped_forward(const Family<T>& in, bool whole) {
  if (in.L < GROUP || in.K <= Lanes<T>::n) return forward<T, false, false>(in, whole);
  const int64_t width = whole ? in.V : 4 * Lanes<T>::n;
  const int64_t blocks = (in.V + width - 1) / width, jobs = in.B * in.H * blocks;
  share_out(jobs, in.L, !in.small(), [&](int64_t job, int64_t begin, int64_t end) {
    const int64_t head = job / blocks, first = job % blocks * width;
    grouped_columns<T>(in, head / in.H, head % in.H, first, std::min(width, in.V - first), begin, end);
  });
}

// ---- backward: a row here is a column of S, as in matrix_state.h

// The state after a group.
template <class T>
[[gnu::noinline]] void advance(const Group<T>& group, const Token<T>* tokens, const T* before, T* after,
                               int64_t V) {
  const int64_t padded = group.padded;
  const T *v[] = {tokens[0].v, tokens[1].v, tokens[2].v, tokens[3].v};
  for (int64_t p = 0; p < padded; p += Lanes<T>::n) {
    const Vec<T> w = load(group.w() + p);
    Vec<T> k[GROUP];
#pragma GCC unroll 4
    for (int g = 0; g < GROUP; ++g) k[g] = load(group.k(g) + p);
    for (int64_t j = 0; j < V; ++j) {
      Vec<T> s = w * load(before + j * padded + p);
#pragma GCC unroll 4
      for (int g = 0; g < GROUP; ++g) s += k[g] * v[g][j];
      store(after + j * padded + p, s);
    }
  }
}

// Of as many vectors as there are lanes for a token of a group, each with the tokens' parts beside
// each other, the sums: first those of token 0.
template <class T, int STRIDE = 1>
inline Vec<T> sums_of_parts(const T* vectors) {
  constexpr int n = Lanes<T>::n;
  constexpr auto lanes = std::make_integer_sequence<int, n>();
  if constexpr (STRIDE == n / GROUP) return load(vectors);
  else return folded<T, STRIDE>(sums_of_parts<T, 2 * STRIDE>(vectors),
                                sums_of_parts<T, 2 * STRIDE>(vectors + STRIDE * n), lanes);
}

// The gradients of values, as far as they go through D, that of the state after the group.
template <class T, int N>
void values_through_state(const Group<T>& group, const T* D, int64_t V, T* partial, const Gradients<T>* of) {
  constexpr int n = Lanes<T>::n, width = N * n;
  constexpr auto lanes = std::make_integer_sequence<int, n>();
  const int64_t padded = group.padded;
  for (int64_t p = 0; p < padded; p += width) {
    Vec<T> k[GROUP][N];
#pragma GCC unroll 4
    for (int g = 0; g < GROUP; ++g)
#pragma GCC unroll 4
      for (int c = 0; c < N; ++c) k[g][c] = load(group.k(g) + p + c * n);
    for (int64_t j = 0; j < V; ++j) {
      Vec<T> total[GROUP] = {};
#pragma GCC unroll 4
      for (int c = 0; c < N; ++c) {
        const Vec<T> d = load(D + j * padded + p + c * n);
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; ++g) total[g] += k[g][c] * d;
      }
      Vec<T> parts = folded<T, n / 4>(folded<T, n / 2>(total[0], total[2], lanes),
                                      folded<T, n / 2>(total[1], total[3], lanes), lanes);
      if (p) parts += load(partial + j * n);
      store(partial + j * n, parts);
    }
  }
  for (int64_t j = 0; j < V; j += n / GROUP) {
    alignas(64) T all[n];
    store(all, sums_of_parts<T>(partial + j * n));
    for (int g = 0; g < GROUP; ++g)
      std::memcpy(of[g].v + j, all + g * (n / GROUP), n / GROUP * sizeof(T));
  }
}

// The gradients of n numbers of queries, keys and decays from number p on, and of the state before
// the group, of which D is that of the state after it. products: dy_i^T v_j.
template <class T, bool DECAY>
void keys_and_queries(const Group<T>& group, const Token<T>* tokens, const T* before, const T* after,
                      int64_t V, const T* products, int64_t p, T* D, const Gradients<T>* of) {
  Vec<T> q[GROUP], of_q[GROUP] = {}, of_k[GROUP] = {}, of_log_w = {};
  const Vec<T> w = load(group.w() + p);
  const int64_t padded = group.padded;
  const T *v[] = {tokens[0].v, tokens[1].v, tokens[2].v, tokens[3].v};
  const T *dy[] = {of[0].y, of[1].y, of[2].y, of[3].y};
#pragma GCC unroll 4
  for (int g = 0; g < GROUP; ++g) q[g] = load(group.q(g) + p);
  for (int64_t j = 0; j < V; ++j) {
    const int64_t place = j * padded + p;
    Vec<T> d = load(D + place);
    const Vec<T> s = load(before + place);
    if (DECAY) of_log_w += d * load(after + place);
#pragma GCC unroll 4
    for (int g = 0; g < GROUP; ++g) of_q[g] += dy[g][j] * s, of_k[g] += v[g][j] * d;
    d *= w;
#pragma GCC unroll 4
    for (int g = 0; g < GROUP; ++g) d += q[g] * dy[g][j];
    store(D + place, d);
  }
  Vec<T> own[GROUP], k[GROUP], decay = Vec<T>{} + T(1);
#pragma GCC unroll 4
  for (int i = 0; i < GROUP; ++i) {
    own[i] = load(tokens[i].w + p), k[i] = load(tokens[i].k + p), q[i] = load(tokens[i].q + p);
    decay *= own[i];
    of_q[i] *= decay;
  }
  decay = Vec<T>{} + T(1);
#pragma GCC unroll 4
  for (int i = GROUP - 1; i >= 0; --i) of_k[i] *= decay, decay *= own[i];
#pragma GCC unroll 4
  for (int j = 0; j < GROUP; ++j) {
    Vec<T> between = Vec<T>{} + T(1);  // W_ij
#pragma GCC unroll 4
    for (int i = j; i < GROUP; ++i) {
      if (i > j) between *= own[i];
      const Vec<T> by = between * products[i * GROUP + j];
      of_q[i] += by * k[j];
      of_k[j] += by * q[i];
    }
  }
  // That of log w_i is the sum of D_i S_i over a row, before its query and without its key; begun
  // at the end, it is exactly zero for tokens that nothing depends on.
#pragma GCC unroll 4
  for (int i = GROUP - 1; i >= 0; --i) {
    store(of[i].q + p, of_q[i]), store(of[i].k + p, of_k[i]);
    if (!DECAY) continue;
    of_log_w += q[i] * of_q[i] - k[i] * of_k[i];
    store(of[i].log_w + p, of_log_w);
  }
}

template <class T, int N, bool DECAY>
void grouped_head(const Family<T>& in, int64_t i, int64_t h, int64_t begin, int64_t end) {
  constexpr int n = Lanes<T>::n, width = N * n;
  const int64_t K = in.K, V = in.V, padded = round_up(K, width), size = V * padded;
  const int64_t most = round_up(std::min(SEGMENT, in.L), GROUP), wide = round_up(std::max(K, V), width);
  std::vector<Token<T>> tokens;
  std::vector<Group<T>> groups;
  std::vector<Gradients<T>> of;
  for (int64_t t = 0; t < most; ++t) tokens.emplace_back(wide, in.more);
  for (int64_t t = 0; t < most; t += GROUP) groups.emplace_back(padded);
  for (int64_t g = 0; g < GROUP; ++g) of.emplace_back(wide);
  Buffer<T> states((most / GROUP + 1) * size), D(size), partial(round_up(V, n) * n), products(GROUP * GROUP);
  const View<T>& given = end < in.L ? in.of_S : in.of_end;
  transpose<T>(given.at(i, h), given.stride[2], K, V, D, padded);

  for (int64_t start = round_up(end, SEGMENT) - SEGMENT; start >= begin; start -= SEGMENT) {
    const int64_t count = (std::min(SEGMENT, end - start) + GROUP - 1) / GROUP;
    transpose<T>(in.kept.at(i, h, start / SEGMENT), V, K, V, states, padded);
    for (int64_t m = 0; m < count; ++m) {
      read_group(in, i, h, start + m * GROUP, &tokens[m * GROUP]);
      groups[m].from(&tokens[m * GROUP]);
      if (DECAY || m + 1 < count)
        advance(groups[m], &tokens[m * GROUP], states + m * size, states + (m + 1) * size, V);
    }
    for (int64_t m = count - 1; m >= 0; --m) {
      const int64_t first = start + m * GROUP;
      Token<T>* own = &tokens[m * GROUP];
      for (int64_t g = GROUP - 1; g >= 0; --g) {
        if (first + g < in.L) in.read_gradient(i, h, first + g, own[g], of[g].y);
        else std::fill_n(of[g].y, V, T(0));
      }
      Triangle<T> triangle;
      for (int64_t d = 0; d < V; d += n)
#pragma GCC unroll 4
        for (int a = 0; a < GROUP; ++a)
#pragma GCC unroll 4
          for (int b = 0; b <= a; ++b)
            triangle.pairs[a * GROUP + b] += load(of[a].y + d) * load(own[b].v + d);
      triangle.to(products);
      values_through_state<T, N>(groups[m], D, V, partial, of.data());
      for (int64_t p = 0; p < padded; p += n)
        keys_and_queries<T, DECAY>(groups[m], own, states + m * size, states + (m + 1) * size, V, products, p, D,
                                   of.data());
      for (int64_t d = 0; d < V; d += n)
#pragma GCC unroll 4
        for (int b = 0; b < GROUP; ++b) {
          Vec<T> total = load(of[b].v + d);
#pragma GCC unroll 4
          for (int a = b; a < GROUP; ++a) total += groups[m].products()[a * GROUP + b] * load(of[a].y + d);
          store(of[b].v + d, total);
        }
      for (int64_t g = std::min(GROUP, in.L - first) - 1; g >= 0; --g)
        in.write_gradients(i, h, first + g, own[g], of[g]);
    }
  }
  transpose<T>(D, padded, V, K, in.of_S.at(i, h), in.of_S.stride[2]);
}

template <class T>
void grouped_backward(const Family<T>& in) {
  if (in.L < GROUP) return backward<T, false, false>(in);
  const bool narrow = in.K <= Lanes<T>::n;
  if (in.decay) backward_heads(in, narrow ? grouped_head<T, 1, true> : grouped_head<T, 2, true>);
  else backward_heads(in, narrow ? grouped_head<T, 1, false> : grouped_head<T, 2, false>);
}

}  // namespace matrix_state
