// The wkv operator of RWKV-4, token by token. The equations are those of seqzoo/ops/wkv4.py.
#include "common.h"

namespace {

constexpr int64_t SEGMENT = 32;     // tokens between two states that the forward pass keeps
constexpr int64_t SMALL = 1 << 12;  // numbers below which a second thread costs more than it saves

// Two numbers e^p x and e^q y as multiples of the larger of e^p and e^q: e^top.
template <class T>
struct Scales {
  Vec<T> top, old, fresh;
  Scales(Vec<T> p, Vec<T> q) {
    const Vec<T> lag = q - p, e = exp_of_negative<T>(lag < 0 ? lag : -lag), one = Vec<T>{} + T(1);
    top = lag < 0 ? p : q;
    old = lag < 0 ? one : e;
    fresh = lag < 0 ? e : one;
  }
};

template <class T>
struct Sums {
  Vec<T> a, b, p;  // e^-p times the sums of the equations
  Sums after(Vec<T> k, Vec<T> v, Vec<T> w) const {
    const Scales<T> s(p + w, k);
    return {s.old * a + s.fresh * v, s.old * b + s.fresh, s.top};
  }
};

template <class T>
struct Inputs {
  int64_t B, L, D;
  View<T> k, v, w, u, a, b, p;
  explicit Inputs(Arguments& from)
      : B(from.number()), L(from.number()), D(from.number()), k(from.tensor<T>()),
        v(from.tensor<T>()), w(from.tensor<T>()), u(from.tensor<T>()), a(from.tensor<T>()),
        b(from.tensor<T>()), p(from.tensor<T>()) {}
  Sums<T> start(int64_t i, int64_t d, int64_t count) const {
    return {load(a.at(i) + d, count), load(b.at(i) + d, count), load(p.at(i) + d, count)};
  }
};

template <class T>
void forward(Arguments from) {
  const Inputs<T> in(from);
  auto y = from.tensor<T>(), end = from.tensor<T>(), kept = from.tensor<T>();
  constexpr int n = Lanes<T>::n;
  const int64_t lines = (in.D + n - 1) / n;
#pragma omp parallel for if (in.B * in.L * in.D > SMALL)
  for (int64_t job = 0; job < in.B * lines; ++job) {
    const int64_t i = job / lines, d = job % lines * n, count = in.D - d;
    const Vec<T> w = load(in.w.data + d, count), u = load(in.u.data + d, count);
    Sums<T> sums = in.start(i, d, count);
    for (int64_t t = 0; t < in.L; ++t) {
      if (kept && t % SEGMENT == 0) {
        T* to = kept.at(i, t / SEGMENT) + d;
        store(to, sums.a, count), store(to + in.D, sums.b, count), store(to + 2 * in.D, sums.p, count);
      }
      const Vec<T> k = load(in.k.at(i, t) + d, count), v = load(in.v.at(i, t) + d, count);
      const Scales<T> s(sums.p, u + k);
      const Vec<T> out = (s.old * sums.a + s.fresh * v) / (s.old * sums.b + s.fresh);
      store(y.at(i, t) + d, out, count);
      sums = sums.after(k, v, w);
    }
    store(end.at(0, i) + d, sums.a, count), store(end.at(1, i) + d, sums.b, count);
    store(end.at(2, i) + d, sums.p, count);
  }
}

template <class T>
void backward(Arguments from) {
  const Inputs<T> in(from);
  auto kept = from.tensor<T>(), of_y = from.tensor<T>(), of_end = from.tensor<T>();
  auto end = from.tensor<T>(), of_k = from.tensor<T>(), of_v = from.tensor<T>();
  auto of_w = from.tensor<T>(), of_u = from.tensor<T>(), of_start = from.tensor<T>();
  constexpr int n = Lanes<T>::n;
  const int64_t lines = (in.D + n - 1) / n;
#pragma omp parallel for if (in.B * in.L * in.D > SMALL)
  for (int64_t job = 0; job < in.B * lines; ++job) {
    const int64_t i = job / lines, d = job % lines * n, count = in.D - d;
    const Vec<T> w = load(in.w.data + d, count), u = load(in.u.data + d, count);
    // Gradients of the sums after a token are e^scale times g_a and g_b; g_p is that of the state's
    // own scale, which only the last state has.
    Vec<T> g_a = load(of_end.at(0, i) + d, count), g_b = load(of_end.at(1, i) + d, count);
    Vec<T> scale = -load(end.at(2, i) + d, count), w_sum = {}, u_sum = {};
    Vec<T> g_p = load(of_end.at(2, i) + d, count) - g_a * load(end.at(0, i) + d, count) -
                 g_b * load(end.at(1, i) + d, count);
    for (int64_t first = (in.L - 1) / SEGMENT * SEGMENT; first >= 0; first -= SEGMENT) {
      const int64_t length = std::min(SEGMENT, in.L - first);
      Sums<T> states[SEGMENT + 1];
      const T* start = kept.at(i, first / SEGMENT) + d;
      states[0] = {load(start, count), load(start + in.D, count), load(start + 2 * in.D, count)};
      for (int64_t t = 0; t + 1 < length; ++t)
        states[t + 1] = states[t].after(load(in.k.at(i, first + t) + d, count),
                                        load(in.v.at(i, first + t) + d, count), w);
      for (int64_t t = length - 1; t >= 0; --t) {
        const Sums<T>& before = states[t];
        const Vec<T> k = load(in.k.at(i, first + t) + d, count);
        const Vec<T> v = load(in.v.at(i, first + t) + d, count);
        // What follows the token: its own part in the sums, and their decay.
        const Vec<T> own = exp_of_negative<T>(k + scale);
        Vec<T> dv = own * g_a, dk = own * (g_a * v + g_b);
        w_sum += exp_of_negative<T>(before.p + w + scale) * (g_a * before.a + g_b * before.b);
        const auto by_key = k > before.p + w;
        dk += by_key ? g_p : Vec<T>{};
        g_p = by_key ? Vec<T>{} : g_p;
        w_sum += g_p;
        // The token's output.
        const Scales<T> s(before.p, u + k);
        const Vec<T> share = load(of_y.at(i, first + t) + d, count) / (s.old * before.b + s.fresh);
        const Vec<T> y = (s.old * before.a + s.fresh * v) / (s.old * before.b + s.fresh);
        const Vec<T> of_bonus = s.fresh * share * (v - y);
        dv += s.fresh * share;
        dk += of_bonus;
        u_sum += of_bonus;
        const Scales<T> g(scale + w, -s.top);
        g_a = g.old * g_a + g.fresh * share;
        g_b = g.old * g_b - g.fresh * share * y;
        scale = g.top;
        store(of_k.at(i, first + t) + d, dk, count), store(of_v.at(i, first + t) + d, dv, count);
      }
    }
    const Sums<T> start = in.start(i, d, count);
    const Vec<T> by_a = exp_of_negative<T>(scale + start.p) * g_a;
    const Vec<T> by_b = exp_of_negative<T>(scale + start.p) * g_b;
    store(of_w.at(i) + d, w_sum, count), store(of_u.at(i) + d, u_sum, count);
    store(of_start.at(0, i) + d, by_a, count), store(of_start.at(1, i) + d, by_b, count);
    store(of_start.at(2, i) + d, Vec<T>(g_p + by_a * start.a + by_b * start.b), count);
  }
}

}  // namespace

extern "C" {
void wkv4_forward_float32(const int64_t* from) { forward<float>(Arguments(from)); }
void wkv4_forward_float64(const int64_t* from) { forward<double>(Arguments(from)); }
void wkv4_backward_float32(const int64_t* from) { backward<float>(Arguments(from)); }
void wkv4_backward_float64(const int64_t* from) { backward<double>(Arguments(from)); }
}
