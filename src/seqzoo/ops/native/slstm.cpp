// The recurrence of sLSTM, after the products of the inputs with their weights: seqzoo/ops/slstm.py.
// A head is a recurrence of its own. T is the type of states and gates, P that of the factors of the
// products, and of what is kept for the backward pass.
#include "recurrent.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr int GATES = 4;                     // i, f, z, o
enum { H, C, N, M, STATES };                 // of a state
enum { I, F, Z, O, SLOPE, C0, N0, KEPT };    // kept of a token; slope: of log f by its sum; c and n before

// log(1 + e) for e from 0 to 1, as 2 atanh(e / (2 + e)).
template <class T>
inline Vec<T> log1p(Vec<T> e) {
  constexpr int TERMS = sizeof(T) == 8 ? 17 : 8;
  const Vec<T> s = e / (T(2) + e), square = s * s;
  Vec<T> y = {};
#pragma GCC unroll 17
  for (int i = TERMS - 1; i >= 0; --i) y = y * square + T(2) / T(2 * i + 1);
  return s * y;
}

template <class T>
inline Vec<T> larger(Vec<T> x, Vec<T> y) { return x > y ? x : y; }

template <class T, class P>
struct Given {
  int64_t heads, B, L, K;
  bool exponential;  // the forget gate; else it is a sigmoid
  View<P> x[2];      // (H, B, L, 2 K): of i and f, and of z and o
  View<T> R, bias;   // (H, 4 K, K), (H, 4 K)
  View<T> state[STATES];  // (B, H, K) each
  explicit Given(Arguments& from)
      : heads(from.number()), B(from.number()), L(from.number()), K(from.number()), exponential(from.number()) {
    for (auto& part : x) part = from.tensor<P>();
    R = from.tensor<T>(), bias = from.tensor<T>();
    for (auto& part : state) part = from.tensor<T>();
  }
};

// Runs f(head, row, count, its matrix) for blocks of rows of the batch in every head.
template <class T, class P, class Body>
void in_heads(const Given<T, P>& in, bool backward, Body f) {
  std::vector<Matrix<T, P>> matrices;
  for (int64_t h = 0; h < in.heads; ++h)
    matrices.emplace_back(View<T>{in.R.at(h), {in.R.stride[1], 1}}, in.K, GATES, backward);
#pragma omp parallel if (in.heads * in.B * in.L * GATES * in.K * in.K > FEW)
  {
    int64_t threads = 1;
#ifdef _OPENMP
    threads = omp_get_num_threads();
#endif
    const int64_t least = std::max((in.B + ROWS - 1) / ROWS, (threads + in.heads - 1) / in.heads);
    const int64_t blocks = std::min(in.B, least), jobs = in.heads * blocks;
#pragma omp for
    for (int64_t h = 0; h < in.heads; ++h)
      for (int64_t panel = 0; panel < matrices[h].panels; ++panel) matrices[h].pack(panel);
#pragma omp for schedule(dynamic)
    for (int64_t job = 0; job < jobs; ++job) {
      const int64_t h = job / blocks, block = job % blocks, row = in.B * block / blocks;
      f(h, row, in.B * (block + 1) / blocks - row, matrices[h]);
    }
  }
}

template <class T, class P>
void forward(Arguments from) {
  constexpr int n = Lanes<T>::n;
  const Given<T, P> in(from);
  View<T> y = from.tensor<T>(), after[STATES];  // y: (B, L, H, K)
  for (auto& part : after) part = from.tensor<T>();
  const View<P> before = from.tensor<P>(), kept = from.tensor<P>();  // (H, B, L, K), (H, B, L, 7 K)
  in_heads(in, false, [&](int64_t head, int64_t row, int64_t R, Matrix<T, P>& U) {
    const int64_t K = in.K, padded = U.K, width = GATES * padded, part = R * padded;
    Buffer<T> sums(R * width), states(STATES * part);
    Buffer<P> factors(part);
    each<T>(R, K, [&](int64_t r, int64_t u, int64_t count) {
      for (int s = 0; s < STATES; ++s)
        store(states + s * part + r * padded + u, load(in.state[s].at(row + r, head) + u, count));
      write(factors + r * padded + u, load(states + r * padded + u), n);
    });
    for (int64_t t = 0; t < in.L; ++t) {
      U.multiply(factors, R, sums, width);
      each<T>(R, K, [&](int64_t r, int64_t u, int64_t count) {
        const int64_t b = row + r;
        Vec<T> x[GATES];
        for (int g = 0; g < GATES; ++g)
          x[g] = read(in.x[g / 2].at(head, b, t) + g % 2 * K + u, count) + load(sums + r * width + u * GATES + g * n) +
                 load(in.bias.at(head) + g * K + u, count);
        T* own = states + r * padded + u;
        const Vec<T> h0 = load(own), c0 = load(own + C * part), n0 = load(own + N * part), m0 = load(own + M * part);
        const Vec<T> e = exp_of_negative<T>(x[F] < 0 ? x[F] : -x[F]);
        const Vec<T> log_sigmoid = (x[F] < 0 ? x[F] : Vec<T>{}) - log1p<T>(e);
        const Vec<T> log_f = in.exponential ? x[F] : log_sigmoid;
        const Vec<T> m = larger<T>(log_f + m0, x[I]);
        const Vec<T> f = exp_of_negative<T>(log_f - (m - m0)), i = exp_of_negative<T>(x[I] - m);
        const Vec<T> z = tanh<T>(x[Z]), o = sigmoid<T>(x[O]);
        const Vec<T> c = f * c0 + i * z, norm = f * n0 + i, h = o * c / norm;
        store(own, h), store(own + C * part, c), store(own + N * part, norm), store(own + M * part, m);
        write(factors + r * padded + u, h, n);
        store(y.at(b, t, head) + u, h, count);
        if (!kept) return;
        write(before.at(head, b, t) + u, h0, count);
        const Vec<T> slope = in.exponential ? Vec<T>{} + T(1) : (x[F] < 0 ? Vec<T>{} + T(1) : e) / (T(1) + e);
        const Vec<T> values[KEPT] = {i, f, z, o, slope, c0, n0};
        for (int k = 0; k < KEPT; ++k) write(kept.at(head, b, t) + k * K + u, values[k], count);
      });
    }
    each<T>(R, K, [&](int64_t r, int64_t u, int64_t count) {
      for (int s = 0; s < STATES; ++s)
        store(after[s].at(row + r, head) + u, load(states + s * part + r * padded + u), count);
    });
  });
}

template <class T, class P>
void backward(Arguments from) {
  constexpr int n = Lanes<T>::n;
  const Given<T, P> in(from);
  const View<T> of_y = from.tensor<T>();
  View<T> of_after[M], of_state[M];  // of h, c and n
  for (auto& part : of_after) part = from.tensor<T>();
  const View<P> kept = from.tensor<P>();
  View<P> of_x[2];
  for (auto& part : of_x) part = from.tensor<P>();
  const View<T> of_bias = from.tensor<T>();  // (B, H, 4 K), to be added up
  for (auto& part : of_state) part = from.tensor<T>();
  in_heads(in, true, [&](int64_t head, int64_t row, int64_t R, Matrix<T, P>& U) {
    const int64_t K = in.K, padded = U.padded, part = R * padded;
    Buffer<T> sums(part), states(M * part), bias(R * GATES * padded);
    Buffer<P> factors(R * U.K);
    each<T>(R, K, [&](int64_t r, int64_t u, int64_t count) {
      for (int s = 0; s < M; ++s)
        if (of_after[s]) store(states + s * part + r * padded + u, load(of_after[s].at(row + r, head) + u, count));
    });
    for (int64_t t = in.L - 1; t >= 0; --t) {
      each<T>(R, K, [&](int64_t r, int64_t u, int64_t count) {
        const int64_t b = row + r;
        T* own = states + r * padded + u;
        Vec<T> dh = load(own) + load(sums + r * padded + u), dc = load(own + C * part), dn = load(own + N * part);
        if (of_y) dh += load(of_y.at(b, t, head) + u, count);
        Vec<T> k[KEPT];
        for (int j = 0; j < KEPT; ++j) k[j] = read(kept.at(head, b, t) + j * K + u, count);
        for (int64_t lane = count; lane < n; ++lane) k[I][lane] = 1;  // so that nothing is 0 / 0
        const Vec<T> c = k[F] * k[C0] + k[I] * k[Z], norm = k[F] * k[N0] + k[I];
        const Vec<T> share = c / norm, through = dh * k[O] / norm;  // h = o share
        dc += through, dn -= through * share;
        const Vec<T> dx[GATES] = {(dc * k[Z] + dn) * k[I], (dc * k[C0] + dn * k[N0]) * k[F] * k[SLOPE],
                                  dc * k[I] * (T(1) - k[Z] * k[Z]), dh * share * k[O] * (T(1) - k[O])};
        store(own, Vec<T>{}), store(own + C * part, Vec<T>(dc * k[F])), store(own + N * part, Vec<T>(dn * k[F]));
        for (int g = 0; g < GATES; ++g) {
          T* total = bias + (r * GATES + g) * padded + u;
          write(of_x[g / 2].at(head, b, t) + g % 2 * K + u, dx[g], count);
          write(factors + r * U.K + g * padded + u, dx[g], n);
          store(total, load(total) + dx[g]);
        }
      });
      U.multiply(factors, R, sums, padded);
    }
    each<T>(R, K, [&](int64_t r, int64_t u, int64_t count) {
      const T* own = states + r * padded + u;
      store(of_state[H].at(row + r, head) + u, load(own) + load(sums + r * padded + u), count);
      for (int s : {C, N}) store(of_state[s].at(row + r, head) + u, load(own + s * part), count);
      for (int g = 0; g < GATES; ++g)
        store(of_bias.at(row + r, head) + g * K + u, load(bias + (r * GATES + g) * padded + u), count);
    });
  });
}

}  // namespace

extern "C" {
void slstm_forward_float32(const int64_t* from) { forward<float, float>(Arguments(from)); }
void slstm_forward_float64(const int64_t* from) { forward<double, double>(Arguments(from)); }
void slstm_backward_float32(const int64_t* from) { backward<float, float>(Arguments(from)); }
void slstm_backward_float64(const int64_t* from) { backward<double, double>(Arguments(from)); }
#ifdef __AVX512BF16__
void slstm_forward_bfloat16(const int64_t* from) { forward<float, BFloat16>(Arguments(from)); }
void slstm_backward_bfloat16(const int64_t* from) { backward<float, BFloat16>(Arguments(from)); }
#endif
}
