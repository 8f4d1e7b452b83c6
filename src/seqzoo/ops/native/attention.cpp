// Softmax attention, a block of queries and keys at a time, so that no scores are kept.
// The equations are those of seqzoo/ops/attention.py; the sums of the softmax go along with the
// blocks (Dao et al. 2022, arXiv 2205.14135). P is the type of the inputs, T that of sums.
#include <cmath>
#include <limits>

#include "products.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr int PANEL = 4;             // vectors of columns of a product at once
constexpr int64_t SPAN = 4;          // blocks of keys between two looks at the largest score
constexpr int64_t CHUNK = 256;       // queries of a job where there are few heads

template <class T>
constexpr int64_t block = PANEL * Lanes<T>::n;  // queries or keys

template <class P>
constexpr int terms = sizeof(P) == 8 ? 13 : sizeof(P) == 4 ? 7 : 5;  // of exp's series

template <class P>
struct Sum {
  typedef float type;
};
template <>
struct Sum<double> {
  typedef double type;
};

// A matrix of K rows as panels of up to PANEL vectors of columns; zeros where nothing is written.
template <class T, class P>
class Panels {
 public:
  static constexpr int n = Lanes<T>::n;

  Panels(int64_t K, int64_t columns)
      : K_(round_up(K, step<P>)), vectors_((columns + n - 1) / n), memory_(K_ * vectors_ * n) {}

  int64_t count() const { return (vectors_ + PANEL - 1) / PANEL; }

  // Row i becomes row i of the matrix.
  void rows(const P* x, int64_t apart, int64_t count, int64_t columns) {
    for (int64_t i = 0; i < count; i += step<P>)
      for (int64_t j = 0; j < columns; j += n)
        store(at(i, j), steps(x + i * apart + j, apart, count - i, columns - j));
  }

  // Row i becomes column i.
  void columns(const P* x, int64_t apart, int64_t count, int64_t columns) {
    for (int64_t i = 0; i < count; i += n)
      for (int64_t j = 0; j < columns; j += n * step<P>) {
        Vec<T> words[n];
        for (int64_t r = 0; r < n; ++r)
          words[r] = i + r < count ? load((const T*)(x + (i + r) * apart + j), (columns - j) / step<P>) : Vec<T>{};
        transpose<T>(words);
        for (int64_t r = 0; r < n && j + r * step<P> < columns; ++r) store(at(j + r * step<P>, i), words[r]);
      }
  }

  // out = or += R rows times rows [k, k + K) of some panels.
  template <bool ADD>
  void multiply(const P* rows, int64_t apart, int64_t R, int64_t k, int64_t K, int64_t panel,
                int64_t panels, T* out, int64_t width) const {
    for (int64_t i = 0; i < panels; ++i) {
      const int64_t first = (panel + i) * PANEL, N = std::min<int64_t>(PANEL, vectors_ - first);
      const P* from = memory_ + (first * K_ + k * N) * n;
      T* to = out + i * PANEL * n;
      if (N == 1) of_rows<1, 8, ADD>(rows, apart, R, K, from, to, width);
      else if (N == 2) of_rows<2, 8, ADD>(rows, apart, R, K, from, to, width);
      else if (N == 3) of_rows<3, 8, ADD>(rows, apart, R, K, from, to, width);
      else of_rows<4, 6, ADD>(rows, apart, R, K, from, to, width);
    }
  }

  // A vector of columns in `step` rows from k.
  T* at(int64_t k, int64_t column) {
    const int64_t first = column / (PANEL * n) * PANEL, N = std::min<int64_t>(PANEL, vectors_ - first);
    return (T*)(memory_ + first * K_ * n + k * N * n) + column - first * n;
  }

 private:
  template <int N, int MOST, bool ADD>
  static void of_rows(const P* rows, int64_t apart, int64_t R, int64_t K, const P* panel, T* out,
                      int64_t width) {
    int64_t r = 0;
    for (; r + MOST <= R; r += MOST)
      multiply_panel<T, P, MOST, N, ADD>(rows + r * apart, apart, K, panel, out + r * width, width);
    for (; r + 2 <= R; r += 2)
      multiply_panel<T, P, 2, N, ADD>(rows + r * apart, apart, K, panel, out + r * width, width);
    if (r < R) multiply_panel<T, P, 1, N, ADD>(rows + r * apart, apart, K, panel, out + r * width, width);
  }

  int64_t K_, vectors_;
  mutable Buffer<P> memory_;
};

template <class T, class P>
struct Inputs {
  int64_t B, H, L, S, K, V, causal;  // rows, heads, queries, keys, sizes of keys and values
  int64_t window;                    // keys that a query sees of those before it and its own; 0: all
  View<P> q, k, v;
  View<uint8_t> valid;
  View<double> decay;  // c of the keys; the last are those of the queries
  View<T> sinks;
  T scale, softcap;    // softcap: 0 if there is none
  explicit Inputs(Arguments& from)
      : B(from.number()), H(from.number()), L(from.number()), S(from.number()), K(from.number()),
        V(from.number()), causal(from.number()), window(from.number()), q(from.tensor<P>()), k(from.tensor<P>()),
        v(from.tensor<P>()), valid(from.tensor<uint8_t>()), decay(from.tensor<double>()), sinks(from.tensor<T>()),
        scale(1 / std::sqrt(T(K))), softcap(from.real()) {}
  // The keys of a query, and the queries of a key: from the first one to before the end.
  int64_t keys_end(int64_t query) const { return causal ? query + S - L + 1 : S; }
  int64_t first_key(int64_t query) const {
    return window ? std::max<int64_t>(0, query + S - L + 1 - window) : 0;
  }
  int64_t first_query(int64_t key) const { return causal ? std::max<int64_t>(0, key - (S - L)) : 0; }
  int64_t queries_end(int64_t key) const {
    return window ? std::clamp<int64_t>(key - (S - L) + window, 0, L) : L;
  }
  bool parallel() const { return B * H * L * std::min(S, window ? window : S) * K > SMALL; }
};

// c_i - c_origin for i from `first` on: differences of float64, as c grows with the text.
template <class T>
inline void distances(const double* c, int64_t origin, int64_t first, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = T(c[first + i] - c[origin]);
}

template <class T>
inline Whole<T> lanes() {
  Whole<T> numbers;
  for (int i = 0; i < Lanes<T>::n; ++i) numbers[i] = i;
  return numbers;
}

// ---- forward

// The scores of a row from `start` to before `count` become weights under the largest score so far, and
// the other weights up to `width` 0; returns their sum. What was summed before has to be multiplied by
// `factor`.
template <class T, class P>
T weigh(T scale, T* scores, int64_t start, int64_t count, int64_t width, const T* bias, T* most, T* factor,
        P* weights) {
  constexpr int n = Lanes<T>::n;
  constexpr T none = -std::numeric_limits<T>::infinity();
  const Whole<T> lane = lanes<T>();
  Vec<T> high = Vec<T>{} + none;
  const int64_t whole = start / n * n;
  for (int64_t j = whole; j < count; j += n) {
    Vec<T> s = load(scores + j);
    if (bias) s += load(bias + j);
    if (j < start) s = lane < int(start - j) ? Vec<T>{} + none : s;
    if (count - j < n) s = lane < int(count - j) ? s : Vec<T>{} + none;
    if (bias || j < start || count - j < n) store(scores + j, s);
    high = s > high ? s : high;
  }
  const T now = std::max(*most, largest<T>(high) * scale);
  *factor = *most == now ? T(1) : std::exp(*most - now);
  *most = now;
  Vec<T> total = {};
  int64_t j = 0;
  for (; j < std::min(whole, width); j += n) write(weights + j, Vec<T>{}, n);
  if (now > none)
    for (; j < count; j += n) {
      const Vec<T> p = exp_of_negative<T, terms<P>>(load(scores + j) * scale - now);
      total += p;
      write(weights + j, p, n);
    }
  for (; j < width; j += n) write(weights + j, Vec<T>{}, n);
  return sum<T>(total);
}

// What a thread needs for a job. Nothing is written where there are zeros up to whole vectors, so the
// next job finds them.
template <class T, class P>
struct Forward {
  static constexpr int64_t size = block<T>;
  int64_t span, padded;  // keys at once; values of a query, up to whole vectors
  Panels<T, P> k, v;
  Buffer<T> bias, scores, out, most, total, keys_c, queries_c;  // c relative to the first query's
  Buffer<P> weights;
  explicit Forward(const Inputs<T, P>& in)
      : span(std::min(SPAN * size, round_up(in.S, size))), padded(round_up(in.V, Lanes<T>::n)), k(in.K, in.S),
        v(in.S, in.V), bias(round_up(in.S, Lanes<T>::n)), scores(size * span), out(size * padded), most(size),
        total(size), keys_c(round_up(in.S, Lanes<T>::n)), queries_c(size), weights(size * span) {}

  // Scores become what the softmax sees of them, where it is not the scores alone.
  T adjust(const Inputs<T, P>& in, T* row, int64_t j, int64_t count, T c) const {
    if (!in.softcap && !in.decay) return in.scale;
    for (int64_t i = 0; i < count; i += Lanes<T>::n) {
      Vec<T> s = load(row + i) * in.scale;
      if (in.softcap) s = in.softcap * tanh<T>(s / in.softcap);
      if (in.decay) s += c - load(keys_c + j + i);
      store(row + i, s);
    }
    return 1;
  }

  void queries(const Inputs<T, P>& in, int64_t b, int64_t h, int64_t start, int64_t stop, View<P> y,
               View<T> lse);
};

template <class T, class P>
void Forward<T, P>::queries(const Inputs<T, P>& in, int64_t b, int64_t h, int64_t start, int64_t stop,
                            View<P> y, View<T> lse) {
  constexpr int n = Lanes<T>::n;
  const int64_t base = in.first_key(start), keys = std::min(in.S, in.keys_end(stop - 1)) - base;  // from `base` on
  k.columns(in.k.at(b, h, base), in.k.stride[2], keys, in.K);
  v.rows(in.v.at(b, h, base), in.v.stride[2], keys, in.V);
  if (in.valid)
    for (int64_t j = 0; j < keys; ++j)
      bias[j] = in.valid.at(b)[base + j] ? T(0) : -std::numeric_limits<T>::infinity();
  for (int64_t first = start; first < stop; first += size) {
    const int64_t R = std::min(size, stop - first), last = std::min(keys, in.keys_end(first + R - 1) - base);
    std::fill_n(&out[0], R * padded, T(0));
    std::fill_n(&most[0], R, in.sinks ? *(in.sinks.data + h * in.sinks.stride[0]) : -std::numeric_limits<T>::infinity());
    std::fill_n(&total[0], R, T(in.sinks ? 1 : 0));
    const int64_t nearest = (in.first_key(first) - base) / size * size, own_key = in.S - in.L + first;
    if (in.decay) {
      distances<T>(in.decay.at(b, h), own_key, base + nearest, last - nearest, keys_c + nearest);
      distances<T>(in.decay.at(b, h), own_key, own_key, R, queries_c);
    }
    for (int64_t j = nearest; j < last; j += span) {
      const int64_t count = std::min(span, last - j), width = round_up(count, n);
      k.template multiply<false>(in.q.at(b, h, first), in.q.stride[2], R, 0, round_up(in.K, step<P>), j / size,
                                 (count + size - 1) / size, scores, span);
      for (int64_t r = 0; r < R; ++r) {
        T factor;
        const int64_t own = std::clamp<int64_t>(in.keys_end(first + r) - base - j, 0, count);
        const int64_t from = std::clamp<int64_t>(in.first_key(first + r) - base - j, 0, own);
        const T scale = adjust(in, scores + r * span, j, own, queries_c[r]);
        const T more = weigh<T, P>(scale, scores + r * span, from, own, width, in.valid ? bias + j : nullptr, most + r,
                                   &factor, weights + r * span);
        total[r] = total[r] * factor + more;
        if (factor != T(1))
          for (int64_t c = 0; c < padded; c += n) store(out + r * padded + c, load(out + r * padded + c) * factor);
      }
      v.template multiply<true>(weights, span, R, j, round_up(count, step<P>), 0, v.count(), out, padded);
    }
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t c = 0; c < in.V; c += n)
        write(y.at(b, h, first + r) + c, Vec<T>(load(out + r * padded + c) / total[r]), in.V - c);
      if (lse) lse.at(b, h)[first + r] = most[r] + std::log(total[r]);
    }
  }
}

template <class P>
void forward(Arguments from) {
  typedef typename Sum<P>::type T;
  Inputs<T, P> in(from);
  auto y = from.tensor<P>();
  auto lse = from.tensor<T>();
  int64_t chunk = std::max<int64_t>(1, in.L);
#ifdef _OPENMP
  if (in.B * in.H < 4 * omp_get_max_threads()) chunk = CHUNK;
#endif
  const int64_t chunks = (in.L + chunk - 1) / chunk;
#pragma omp parallel if (in.parallel())
  {
    Forward<T, P> own(in);
#pragma omp for schedule(dynamic)
    for (int64_t job = 0; job < in.B * in.H * chunks; ++job) {
      const int64_t head = job / chunks, start = (chunks - 1 - job % chunks) * chunk;
      own.queries(in, head / in.H, head % in.H, start, std::min(in.L, start + chunk), y, lse);
    }
  }
}

// ---- backward: scores stand as keys by queries, so that the weights of a key are a row

template <class T, class P>
struct Gradients {
  View<P> of_y, y;
  View<T> lse;
  View<P> q, k, v;  // to be written
  View<double> decay;
  explicit Gradients(Arguments& from)
      : of_y(from.tensor<P>()), y(from.tensor<P>()), lse(from.tensor<T>()), q(from.tensor<P>()),
        k(from.tensor<P>()), v(from.tensor<P>()), decay(from.tensor<double>()) {}
};

template <class T, class P>
struct Backward {
  static constexpr int64_t size = block<T>;
  int64_t padded, k_width, v_width;  // queries, and numbers of a key and a value, up to whole vectors
  Panels<T, P> q_columns, y_columns, q_rows, y_rows;
  Buffer<T> lse, delta, of_q;  // of_q: of each block of queries, transposed
  Buffer<T> queries_c, keys_c{size}, of_keys_c{size};  // c relative to that of the first key of a block
  Buffer<double> of_queries_c;  // 0 but for rounding, which the gradient of a gate is a sum of
  // of a block of keys and queries
  Buffer<T> scores{size * size}, of_weights{size * size};
  Buffer<P> weights{size * size}, of_scores{size * size};
  Panels<T, P> panel{size, size};  // of_scores again
  Buffer<P> keys;                  // transposed
  Buffer<T> of_k, of_v;
  explicit Backward(const Inputs<T, P>& in)
      : padded(round_up(in.L, size)), k_width(round_up(in.K, Lanes<T>::n)), v_width(round_up(in.V, Lanes<T>::n)),
        q_columns(in.K, padded), y_columns(in.V, padded), q_rows(padded, in.K), y_rows(padded, in.V),
        lse(padded), delta(padded), of_q(in.K * padded), queries_c(padded), of_queries_c(padded), keys(in.K * size), of_k(size * k_width),
        of_v(size * v_width) {}

  void head(const Inputs<T, P>& in, const Gradients<T, P>& out, int64_t b, int64_t h);

  void transpose_keys(const P* k, int64_t apart, int64_t R, int64_t K) {
    constexpr int n = Lanes<T>::n;
    for (int64_t j = 0; j < size; j += n * step<P>)
      for (int64_t i = 0; i < K; i += n) {
        Vec<T> x[n];
        for (int64_t r = 0; r < n; ++r) {
          const int64_t row = j + r * step<P>;
          x[r] = row < R ? steps(k + row * apart + i, apart, R - row, K - i) : Vec<T>{};
        }
        transpose<T>(x);
        for (int64_t r = 0; r < n && i + r < K; ++r) store((T*)&keys[(i + r) * size + j], x[r]);
      }
  }

  // From scores and gradients of the weights, of keys [first, first + R) and queries [start, ..).
  void differentiate(const Inputs<T, P>& in, int64_t b, int64_t first, int64_t R, int64_t start) {
    constexpr int n = Lanes<T>::n;
    const Whole<T> lane = lanes<T>();
    for (int64_t c = 0; c < size; c += n) {
      const Vec<T> norm = load(lse + start + c), mean = load(delta + start + c);
      Vec<T> of_c = {};
      for (int64_t j = 0; j < size; j += step<P>) {
        Vec<T> d[step<P>] = {};
        for (int64_t s = 0; s < step<P>; ++s) {
          const int64_t row = j + s, place = row * size + c, hidden = in.first_query(first + row) - start - c;
          const int64_t left = in.queries_end(first + row) - start - c;
          Vec<T> p = {};
          if (row < R && hidden < n && left > 0 && !(in.valid && !in.valid.at(b)[first + row])) {
            Vec<T> score = load(scores + place) * in.scale, bent = {};
            if (in.softcap) bent = tanh<T>(score / in.softcap), score = in.softcap * bent;
            if (in.decay) score += load(queries_c + start + c) - keys_c[row];
            p = exp_of_negative<T, terms<P>>(score - norm);
            if (hidden > 0) p = lane < int(hidden) ? Vec<T>{} : p;
            if (left < n) p = lane < int(left) ? p : Vec<T>{};
            d[s] = p * (load(of_weights + place) - mean);
            if (in.decay) of_c += d[s], of_keys_c[row] -= sum<T>(d[s]);
            d[s] *= in.scale * (T(1) - bent * bent);
          }
          write(weights + place, p, n);
          write(of_scores + place, d[s], n);
        }
        store(panel.at(j, c), steps(d, P{}));
      }
      if (in.decay)
        for (int64_t i = 0; i < n; ++i) of_queries_c[start + c + i] += of_c[i];
    }
  }
};

template <class T, class P>
void Backward<T, P>::head(const Inputs<T, P>& in, const Gradients<T, P>& out, int64_t b, int64_t h) {
  constexpr int n = Lanes<T>::n;
  const int64_t K = in.K, V = in.V, L = in.L, K_steps = round_up(K, step<P>), V_steps = round_up(V, step<P>);
  q_columns.columns(in.q.at(b, h), in.q.stride[2], L, K);
  q_rows.rows(in.q.at(b, h), in.q.stride[2], L, K);
  y_columns.columns(out.of_y.at(b, h), out.of_y.stride[2], L, V);
  y_rows.rows(out.of_y.at(b, h), out.of_y.stride[2], L, V);
  std::fill_n(&of_q[0], K * padded, T(0));
  std::fill_n(&of_queries_c[0], padded, 0.0);
  for (int64_t t = 0; t < L; ++t) {
    Vec<T> total = {};
    for (int64_t c = 0; c < V; c += n)
      total += read(out.of_y.at(b, h, t) + c, V - c) * read(out.y.at(b, h, t) + c, V - c);
    lse[t] = out.lse.at(b, h)[t], delta[t] = sum<T>(total);
  }
  for (int64_t first = 0; first < in.S; first += size) {
    const int64_t R = std::min(size, in.S - first);
    const P *k = in.k.at(b, h, first), *v = in.v.at(b, h, first);
    std::fill_n(&of_k[0], R * k_width, T(0));
    std::fill_n(&of_v[0], R * v_width, T(0));
    transpose_keys(k, in.k.stride[2], R, K);
    const int64_t end = in.queries_end(first + R - 1);
    if (in.decay) {
      distances<T>(in.decay.at(b, h), first, in.S - L, L, queries_c);
      distances<T>(in.decay.at(b, h), first, first, R, keys_c);
      std::fill_n(&of_keys_c[0], R, T(0));
    }
    for (int64_t start = in.first_query(first) / size * size; start < end; start += size) {
      q_columns.template multiply<false>(k, in.k.stride[2], R, 0, K_steps, start / size, 1, scores, size);
      y_columns.template multiply<false>(v, in.v.stride[2], R, 0, V_steps, start / size, 1, of_weights, size);
      differentiate(in, b, first, R, start);
      y_rows.template multiply<true>(weights, size, R, start, size, 0, y_rows.count(), of_v, v_width);
      q_rows.template multiply<true>(of_scores, size, R, start, size, 0, q_rows.count(), of_k, k_width);
      panel.template multiply<true>(keys, size, K, 0, size, 0, 1, of_q + start * K, size);
    }
    for (int64_t j = 0; j < R; ++j) {
      if (in.decay) out.decay.at(b, h)[first + j] = of_keys_c[j];
      for (int64_t c = 0; c < K; c += n)
        write(out.k.at(b, h, first + j) + c, load(of_k + j * k_width + c), K - c);
      for (int64_t c = 0; c < V; c += n)
        write(out.v.at(b, h, first + j) + c, load(of_v + j * v_width + c), V - c);
    }
  }
  if (in.decay)
    for (int64_t t = 0; t < L; ++t) out.decay.at(b, h)[in.S - L + t] += of_queries_c[t];
  for (int64_t t = 0; t < L; t += n)
    for (int64_t i = 0; i < K; i += n) {
      Vec<T> x[n];
      for (int64_t r = 0; r < n; ++r) x[r] = i + r < K ? load(of_q + t / size * size * K + (i + r) * size + t % size) : Vec<T>{};
      transpose<T>(x);
      for (int64_t r = 0; r < n && t + r < L; ++r) write(out.q.at(b, h, t + r) + i, x[r], K - i);
    }
}

template <class P>
void backward(Arguments from) {
  typedef typename Sum<P>::type T;
  Inputs<T, P> in(from);
  Gradients<T, P> out(from);
#pragma omp parallel if (in.parallel())
  {
    Backward<T, P> own(in);
#pragma omp for schedule(dynamic)
    for (int64_t job = 0; job < in.B * in.H; ++job) own.head(in, out, job / in.H, job % in.H);
  }
}

}  // namespace

extern "C" {
void attention_forward_float32(const int64_t* from) { forward<float>(Arguments(from)); }
void attention_forward_float64(const int64_t* from) { forward<double>(Arguments(from)); }
void attention_backward_float32(const int64_t* from) { backward<float>(Arguments(from)); }
void attention_backward_float64(const int64_t* from) { backward<double>(Arguments(from)); }
#ifdef __AVX512BF16__
void attention_forward_bfloat16(const int64_t* from) { forward<BFloat16>(Arguments(from)); }
void attention_backward_bfloat16(const int64_t* from) { backward<BFloat16>(Arguments(from)); }
#endif
}
