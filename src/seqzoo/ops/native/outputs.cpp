// Operations between a mixer's sums over time and its output. The equations are those of
// seqzoo/ops/outputs.py.
#include <cmath>

#include "common.h"

namespace {

// ---- the norm of each head, and a gate

template <class T>
struct Norm {
  static constexpr int n = Lanes<T>::n;
  int64_t B, H, L, V, padded;
  bool centred;
  T eps;
  View<T> weights, of_weights;  // (2, H V): scale and shift; for each row of the batch
  Rows<T> y, gate, out, of_y, of_gate, of_out;

  explicit Norm(Arguments& from)
      : B(from.number()), H(from.number()), L(from.number()), V(from.number()),
        padded(round_up(V, n)), centred(from.number()), eps(from.real()) {
    weights = from.tensor<T>();
    y = Rows<T>(from, 2), gate = Rows<T>(from, 1);
  }
  template <class F>
  void each_head(F f) const {  // f(i, h, first token, last, its scale, its shift, a row of ones, memory)
    share_out(B * H, L, B * H * L * V > SMALL, [&](int64_t job, int64_t begin, int64_t end) {
      Buffer<T> memory(8 * padded);
      const int64_t i = job / H, h = job % H;
      T *scale = memory, *shift = scale + padded, *ones = shift + padded;
      copy<T>(weights.at(0) + h * V, V, scale), copy<T>(weights.at(1) + h * V, V, shift);
      std::fill_n(ones, V, T(1));
      f(i, h, begin, end, scale, shift, ones, ones + padded);
    });
  }
  // A row without its mean, over its size; and the inverse of that.
  T normalise(const T* ones, T* row) const {
    Vec<T> total = {}, squares = {};
    for (int64_t p = 0; p < padded; p += n) total += load(row + p);
    const T mean = centred ? sum<T>(total) / V : T(0);
    for (int64_t p = 0; p < padded; p += n) {
      const Vec<T> d = load(ones + p) > 0 ? load(row + p) - mean : Vec<T>{};
      store(row + p, d);
      squares += d * d;
    }
    const T inverse = 1 / std::sqrt(sum<T>(squares) / V + eps);
    for (int64_t p = 0; p < padded; p += n)
      store(row + p, load(ones + p) > 0 ? load(row + p) * inverse : Vec<T>{});
    return inverse;
  }
  void forward() const {
    each_head([&](int64_t i, int64_t h, int64_t begin, int64_t end, const T* scale, const T* shift,
                  const T* ones, T* row) {
      T* g = row + padded;
      for (int64_t t = begin; t < end; ++t) {
        y.read(i, h, t, V, row);
        normalise(ones, row);
        if (gate) gate.read(i, t, h * V, V, g);
        for (int64_t p = 0; p < padded; p += n) {
          Vec<T> z = load(row + p) * load(scale + p) + load(shift + p);
          if (gate) z *= load(g + p) * sigmoid<T>(load(g + p));
          store(row + p, z);
        }
        out.write(row, i, t, h * V, V);
      }
    });
  }
  void backward() const {
    each_head([&](int64_t i, int64_t h, int64_t begin, int64_t end, const T* scale, const T* shift,
                  const T* ones, T* row) {
      T *g = row + padded, *d = g + padded, *of_scale = d + padded, *of_shift = of_scale + padded;
      T* sums[] = {of_weights.at(i, 0) + h * V, of_weights.at(i, 1) + h * V};  // over all tokens so far
      if (begin) copy<T>(sums[0], V, of_scale), copy<T>(sums[1], V, of_shift);
      for (int64_t t = begin; t < end; ++t) {
        y.read(i, h, t, V, row);
        const T inverse = normalise(ones, row);
        of_out.read(i, t, h * V, V, d);
        if (gate) gate.read(i, t, h * V, V, g);
        Vec<T> total = {}, along = {};
        for (int64_t p = 0; p < padded; p += n) {
          const Vec<T> normal = load(row + p), x = load(g + p), s = sigmoid<T>(x);
          Vec<T> of_z = load(d + p) * load(ones + p);
          if (gate) {
            const Vec<T> z = normal * load(scale + p) + load(shift + p);
            store(g + p, Vec<T>(of_z * z * s * (T(1) + x * (T(1) - s))));
            of_z *= x * s;
          }
          store(of_scale + p, load(of_scale + p) + of_z * normal);
          store(of_shift + p, load(of_shift + p) + of_z);
          of_z *= load(scale + p);
          total += of_z;
          along += of_z * normal;
          store(d + p, of_z);
        }
        const T mean = centred ? sum<T>(total) / V : T(0), slope = sum<T>(along) / V;
        for (int64_t p = 0; p < padded; p += n)
          store(d + p, Vec<T>((load(d + p) - mean - slope * load(row + p)) * inverse));
        of_y.write(d, i, h, t, V);
        if (gate) of_gate.write(g, i, t, h * V, V);
      }
      copy<T>(of_scale, V, sums[0]), copy<T>(of_shift, V, sums[1]);
    });
  }
};

template <class T>
void norm(Arguments from) {
  Norm<T> in(from);
  in.out = Rows<T>(from, 1);
  in.forward();
}

template <class T>
void norm_back(Arguments from) {
  Norm<T> in(from);
  in.of_out = Rows<T>(from, 1), in.of_y = Rows<T>(from, 2), in.of_gate = Rows<T>(from, 1);
  in.of_weights = from.tensor<T>();
  in.backward();
}

}  // namespace

extern "C" {
void head_norm_forward_float32(const int64_t* from) { norm<float>(Arguments(from)); }
void head_norm_forward_float64(const int64_t* from) { norm<double>(Arguments(from)); }
void head_norm_backward_float32(const int64_t* from) { norm_back<float>(Arguments(from)); }
void head_norm_backward_float64(const int64_t* from) { norm_back<double>(Arguments(from)); }
}
