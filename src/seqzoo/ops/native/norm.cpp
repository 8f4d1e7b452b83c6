// Layer norm and root-mean-square norm of rows. P is the type of what goes out, perhaps bfloat16.
#include <cmath>

#include "products.h"

namespace {


template <class T>
struct Inputs {
  int64_t rows, D, centred;  // centred: whether the mean is taken off
  T eps;
  View<T> x, weight, bias, kept;  // kept: mean and inverse deviation of each row
  explicit Inputs(Arguments& from)
      : rows(from.number()), D(from.number()), centred(from.number()), eps(from.real()),
        x(from.tensor<T>()), weight(from.tensor<T>()), bias(from.tensor<T>()), kept(from.tensor<T>()) {}
};

template <class T, class P>
void forward(Arguments from) {
  constexpr int n = Lanes<T>::n;
  Inputs<T> in(from);
  auto y = from.tensor<P>();
#pragma omp parallel for if (in.rows * in.D > SMALL)
  for (int64_t i = 0; i < in.rows; ++i) {
    const T* x = in.x.at(i);
    Vec<T> total = {}, square = {};
    if (in.centred)
      for (int64_t d = 0; d < in.D; d += n) total += load(x + d, in.D - d);
    const T mean = sum<T>(total) / in.D;
    int64_t d = 0;
    for (; d + n <= in.D; d += n) square += (load(x + d) - mean) * (load(x + d) - mean);
    T rest = 0;
    for (; d < in.D; ++d) rest += (x[d] - mean) * (x[d] - mean);
    const T inverse = 1 / std::sqrt((sum<T>(square) + rest) / in.D + in.eps);
    for (d = 0; d < in.D; d += n) {
      Vec<T> out = (load(x + d, in.D - d) - mean) * inverse * load(in.weight.data + d, in.D - d);
      if (in.bias) out += load(in.bias.data + d, in.D - d);
      write(y.at(i) + d, out, in.D - d);
    }
    in.kept.at(i)[0] = mean, in.kept.at(i)[1] = inverse;
  }
}

template <class T, class P>
void backward(Arguments from) {
  constexpr int n = Lanes<T>::n;
  Inputs<T> in(from);
  const int64_t parts = from.number();
  auto of_y = from.tensor<P>();
  auto of_x = from.tensor<T>(), of_weight = from.tensor<T>(), of_bias = from.tensor<T>();  // of each part
#pragma omp parallel for if (in.rows * in.D > SMALL)
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = in.rows * part / parts; i < in.rows * (part + 1) / parts; ++i) {
      const T *x = in.x.at(i), mean = in.kept.at(i)[0], inverse = in.kept.at(i)[1];
      const P* g = of_y.at(i);
      Vec<T> total = {}, along = {};
      for (int64_t d = 0; d < in.D; d += n) {
        const int64_t count = in.D - d;
        const Vec<T> given = read(g + d, count), unit = (load(x + d, count) - mean) * inverse;
        const Vec<T> of_unit = given * load(in.weight.data + d, count);  // 0 in lanes beyond the row
        total += of_unit, along += of_unit * unit;
        store(of_weight.at(part) + d, load(of_weight.at(part) + d, count) + given * unit, count);
        if (in.bias) store(of_bias.at(part) + d, load(of_bias.at(part) + d, count) + given, count);
      }
      const T shift = in.centred ? sum<T>(total) / in.D : T(0), scale = sum<T>(along) / in.D;
      for (int64_t d = 0; d < in.D; d += n) {
        const int64_t count = in.D - d;
        const Vec<T> unit = (load(x + d, count) - mean) * inverse;
        const Vec<T> of_unit = read(g + d, count) * load(in.weight.data + d, count);
        store(of_x.at(i) + d, Vec<T>((of_unit - shift - unit * scale) * inverse), count);
      }
    }
}

}  // namespace

extern "C" {
void norm_forward_float32(const int64_t* from) { forward<float, float>(Arguments(from)); }
void norm_forward_float64(const int64_t* from) { forward<double, double>(Arguments(from)); }
void norm_backward_float32(const int64_t* from) { backward<float, float>(Arguments(from)); }
void norm_backward_float64(const int64_t* from) { backward<double, double>(Arguments(from)); }
void norm_forward_to_bfloat16_float32(const int64_t* from) { forward<float, BFloat16>(Arguments(from)); }
void norm_backward_to_bfloat16_float32(const int64_t* from) { backward<float, BFloat16>(Arguments(from)); }
}
