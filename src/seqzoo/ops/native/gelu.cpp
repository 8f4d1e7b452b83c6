// The Gaussian error linear unit of x + bias: x Phi(x), Phi the normal distribution (Hendrycks and
// Gimpel 2016, arXiv 1606.08415). The error of Phi is below 1e-7 (Abramowitz and Stegun 1964, 7.1.26).
#include "products.h"

namespace {


struct Normal {
  Vec<float> below, density;  // Phi(x) and its derivative
};

template <class P>
inline Normal normal(Vec<float> x) {
  const Vec<float> size = x < 0 ? -x : x;
  const Vec<float> bell = exp_of_negative<float, sizeof(P) == 4 ? 7 : 6>(x * x * -0.5f);
  const Vec<float> t = reciprocal(1.0f + 0.231641888f * size);
  Vec<float> tail = t * 0.530702715f - 0.726576014f;
  tail = tail * t + 0.710706871f;
  tail = tail * t - 0.142248368f;
  tail = tail * t + 0.127414796f;
  tail *= t * bell;
  return {x < 0 ? tail : 1.0f - tail, bell * 0.398942280f};
}

template <class P>
void forward(Arguments from) {
  const int64_t rows = from.number(), D = from.number();
  auto x = from.tensor<P>(), bias = from.tensor<P>(), y = from.tensor<P>();
#pragma omp parallel for if (rows * D > SMALL)
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < D; d += 16) {
      const Vec<float> sum = read(x.at(i) + d, D - d) + read(bias.at(0) + d, D - d);
      write(y.at(i) + d, sum * normal<P>(sum).below, D - d);
    }
}

template <class P>
void backward(Arguments from) {
  const int64_t rows = from.number(), D = from.number(), parts = from.number();
  auto x = from.tensor<P>(), bias = from.tensor<P>(), of_y = from.tensor<P>(), of_x = from.tensor<P>();
  auto of_bias = from.tensor<float>();  // of each part of the rows
#pragma omp parallel for if (rows * D > SMALL)
  for (int64_t part = 0; part < parts; ++part) {
    float* total = of_bias.at(part);
    for (int64_t i = rows * part / parts; i < rows * (part + 1) / parts; ++i)
      for (int64_t d = 0; d < D; d += 16) {
        const Vec<float> sum = read(x.at(i) + d, D - d) + read(bias.at(0) + d, D - d);
        const Normal at = normal<P>(sum);
        const Vec<float> g = read(of_y.at(i) + d, D - d) * (at.below + sum * at.density);
        write(of_x.at(i) + d, g, D - d);
        store(total + d, load(total + d, D - d) + g, D - d);
      }
  }
}

}  // namespace

extern "C" {
void gelu_forward_float32(const int64_t* from) { forward<float>(Arguments(from)); }
void gelu_backward_float32(const int64_t* from) { backward<float>(Arguments(from)); }
void gelu_forward_bfloat16(const int64_t* from) { forward<BFloat16>(Arguments(from)); }
void gelu_backward_bfloat16(const int64_t* from) { backward<BFloat16>(Arguments(from)); }
}
