// The wkv operator of RWKV-4, token by token. The equations are those of seqzoo/ops/wkv4.py.
// T is the type of the sums, X that of keys, values, receptances and outputs in memory.
#include "common.h"

namespace {

constexpr int64_t SEGMENT = 32;     // tokens between two states that the forward pass keeps
constexpr int GROUP = 4;            // vectors of channels that one thread reads a segment of, one by one
constexpr int64_t FEW = 1 << 12;  // numbers below which a second thread costs more than it saves

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
  // Of these sums and of the token's own part in the sums after it.
  Scales<T> shares(Vec<T> k, Vec<T> w) const { return {p + w, k}; }
  Sums after(const Scales<T>& s, Vec<T> v) const { return {s.old * a + s.fresh * v, s.old * b + s.fresh, s.top}; }
};

template <class T, class X>
struct Inputs {
  int64_t B, L, D, groups;
  View<T> w, u, a, b, p;
  View<X> k, v, r;
  explicit Inputs(Arguments& from)
      : B(from.number()), L(from.number()), D(from.number()), w(from.tensor<T>()), u(from.tensor<T>()),
        a(from.tensor<T>()), b(from.tensor<T>()), p(from.tensor<T>()), k(from.tensor<X>()),
        v(from.tensor<X>()), r(from.tensor<X>()) {
    groups = (D + GROUP * Lanes<T>::n - 1) / (GROUP * Lanes<T>::n);
  }
  Sums<T> start(int64_t i, int64_t d) const {
    return {load(a.at(i) + d, D - d), load(b.at(i) + d, D - d), load(p.at(i) + d, D - d)};
  }
};

template <class T, class X>
void forward(Arguments from) {
  const Inputs<T, X> in(from);
  auto y = from.tensor<X>();
  auto end = from.tensor<T>(), kept = from.tensor<T>();
  constexpr int n = Lanes<T>::n;
#pragma omp parallel for if (in.B * in.L * in.D > FEW)
  for (int64_t job = 0; job < in.B * in.groups; ++job) {
    const int64_t i = job / in.groups, from_d = job % in.groups * GROUP * n;
    const int64_t to_d = std::min(in.D, from_d + GROUP * n);
    Sums<T> sums[GROUP];
    vectors<T>(from_d, to_d, [&](int64_t d, auto) { sums[(d - from_d) / n] = in.start(i, d); });
    for (int64_t first = 0; first < in.L; first += SEGMENT)
      vectors<T>(from_d, to_d, [&](int64_t d, auto count) {
        const int64_t last = std::min(in.L, first + SEGMENT);
        const Vec<T> w = load(in.w.data + d, count), u = load(in.u.data + d, count);
        Sums<T> now = sums[(d - from_d) / n];
        if (kept) {
          T* to = kept.at(i, first / SEGMENT) + d;
          store(to, now.a, count), store(to + in.D, now.b, count), store(to + 2 * in.D, now.p, count);
        }
        for (int64_t t = first; t < last; ++t) {
          const Vec<T> k = read(in.k.at(i, t) + d, count), v = read(in.v.at(i, t) + d, count);
          const Scales<T> s(now.p, u + k);
          Vec<T> above = s.old * now.a + s.fresh * v, below = s.old * now.b + s.fresh;
          if (in.r) {
            const Sigmoid<T> gate(read(in.r.at(i, t) + d, count));
            above *= gate.numerator, below *= gate.denominator;
          }
          write(y.at(i, t) + d, Vec<T>(above / below), count);
          now = now.after(now.shares(k, w), v);
        }
        sums[(d - from_d) / n] = now;
      });
    vectors<T>(from_d, to_d, [&](int64_t d, auto count) {
      const Sums<T>& now = sums[(d - from_d) / n];
      store(end.at(0, i) + d, now.a, count), store(end.at(1, i) + d, now.b, count);
      store(end.at(2, i) + d, now.p, count);
    });
  }
}

// Gradients by the sums a and b as they are scaled, by their scale p, and by w and u.
template <class T>
struct Gradients {
  Vec<T> a, b, p, w, u;
};

template <class T, class X>
void backward(Arguments from) {
  const Inputs<T, X> in(from);
  auto kept = from.tensor<T>(), of_end = from.tensor<T>(), end = from.tensor<T>();
  auto of_w = from.tensor<T>(), of_u = from.tensor<T>(), of_start = from.tensor<T>();
  auto of_y = from.tensor<X>(), of_k = from.tensor<X>(), of_v = from.tensor<X>(), of_r = from.tensor<X>();
  constexpr int n = Lanes<T>::n;
#pragma omp parallel for if (in.B * in.L * in.D > FEW)
  for (int64_t job = 0; job < in.B * in.groups; ++job) {
    const int64_t i = job / in.groups, from_d = job % in.groups * GROUP * n;
    const int64_t to_d = std::min(in.D, from_d + GROUP * n);
    Gradients<T> gradients[GROUP];
    vectors<T>(from_d, to_d, [&](int64_t d, auto count) {
      // Of the scale itself there is a gradient only at the end: a change of it before cancels out.
      const Vec<T> a = load(of_end.at(0, i) + d, count), b = load(of_end.at(1, i) + d, count);
      const Vec<T> p = load(of_end.at(2, i) + d, count) - a * load(end.at(0, i) + d, count) -
                       b * load(end.at(1, i) + d, count);
      gradients[(d - from_d) / n] = {a, b, p, Vec<T>{}, Vec<T>{}};
    });
    for (int64_t first = round_up(in.L, SEGMENT) - SEGMENT; first >= 0; first -= SEGMENT)
      vectors<T>(from_d, to_d, [&](int64_t d, auto count) {
        const int64_t length = std::min(SEGMENT, in.L - first);
        const Vec<T> w = load(in.w.data + d, count), u = load(in.u.data + d, count);
        Sums<T> states[SEGMENT + 1];
        Vec<T> old[SEGMENT], fresh[SEGMENT];  // shares in the sums after each token
        const T* start = kept.at(i, first / SEGMENT) + d;
        states[0] = {load(start, count), load(start + in.D, count), load(start + 2 * in.D, count)};
        for (int64_t t = 0; t < length; ++t) {
          const Scales<T> s = states[t].shares(read(in.k.at(i, first + t) + d, count), w);
          states[t + 1] = states[t].after(s, read(in.v.at(i, first + t) + d, count));
          old[t] = s.old, fresh[t] = s.fresh;
        }
        Gradients<T> g = gradients[(d - from_d) / n];
        for (int64_t t = length - 1; t >= 0; --t) {
          const Sums<T>& before = states[t];
          const Vec<T> k = read(in.k.at(i, first + t) + d, count);
          const Vec<T> v = read(in.v.at(i, first + t) + d, count);
          // The sums after the token: its own part, and the decay.
          Vec<T> dv = fresh[t] * g.a, dk = fresh[t] * (g.a * v + g.b);
          g.w += old[t] * (g.a * before.a + g.b * before.b);
          const auto by_key = k > before.p + w;
          dk += by_key ? g.p : Vec<T>{};
          g.p = by_key ? Vec<T>{} : g.p;
          g.w += g.p;
          // The token's output.
          const Scales<T> s(before.p, u + k);
          const Vec<T> one_over = T(1) / (s.old * before.b + s.fresh);
          const Vec<T> y = (s.old * before.a + s.fresh * v) * one_over;
          Vec<T> dy = read(of_y.at(i, first + t) + d, count);
          if (in.r) {
            const Sigmoid<T> gate(read(in.r.at(i, first + t) + d, count));
            const Vec<T> open = gate.numerator / gate.denominator;
            write(of_r.at(i, first + t) + d, Vec<T>(dy * y * open * (T(1) - open)), count);
            dy *= open;
          }
          const Vec<T> share = dy * one_over, of_bonus = s.fresh * share * (v - y);
          dv += s.fresh * share;
          dk += of_bonus;
          g.u += of_bonus;
          g.a = old[t] * g.a + s.old * share;
          g.b = old[t] * g.b - s.old * share * y;
          write(of_k.at(i, first + t) + d, dk, count), write(of_v.at(i, first + t) + d, dv, count);
        }
        gradients[(d - from_d) / n] = g;
      });
    vectors<T>(from_d, to_d, [&](int64_t d, auto count) {
      const Gradients<T>& g = gradients[(d - from_d) / n];
      const Sums<T> start = in.start(i, d);
      store(of_w.at(i) + d, g.w, count), store(of_u.at(i) + d, g.u, count);
      store(of_start.at(0, i) + d, g.a, count), store(of_start.at(1, i) + d, g.b, count);
      store(of_start.at(2, i) + d, Vec<T>(g.p + g.a * start.a + g.b * start.b), count);
    });
  }
}

}  // namespace

extern "C" {
void wkv4_forward_float32(const int64_t* from) { forward<float, float>(Arguments(from)); }
void wkv4_forward_float64(const int64_t* from) { forward<double, double>(Arguments(from)); }
void wkv4_forward_of_bfloat16_float32(const int64_t* from) { forward<float, BFloat16>(Arguments(from)); }
void wkv4_backward_float32(const int64_t* from) { backward<float, float>(Arguments(from)); }
void wkv4_backward_float64(const int64_t* from) { backward<double, double>(Arguments(from)); }
void wkv4_backward_of_bfloat16_float32(const int64_t* from) { backward<float, BFloat16>(Arguments(from)); }
}
