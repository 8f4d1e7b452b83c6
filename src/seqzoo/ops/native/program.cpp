// Replays the operations of one decoding step on the memory in which they were recorded.
// A program is a list of words: for each instruction its code, the number of its words, and those.
#include <cmath>
#include <limits>

#include "common.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

enum Code : int64_t {
  // one input
  COPY, NEG, EXP, SIGMOID, TANH, RELU, SILU, GELU, GELU_TANH, RSQRT, SQRT, SQUARE, COS, SIN, LOG,
  LOG_SIGMOID, SOFTPLUS, ELU, ABS, RECIPROCAL, CLAMP, POWER, POWER_OF, AFFINE, GE, GT, LE, LT,
  // two and three
  ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM, LERP, ADDCMUL, WHERE,
  // of their own
  MATMUL, SUM, MEAN, AMAX, SOFTMAX, LAYER_NORM, GROUP_NORM, EMBEDDING, ATTEND
};

enum Type : int64_t { FLOAT32, FLOAT64, INT64, BOOL, BFLOAT16, INT8 };  // the last two: of weights and caches

constexpr int DIMS = 4;
constexpr int64_t BLOCK = 64;       // columns of a product that a thread computes at once

struct Operand {
  char* data;
  int64_t type, stride[DIMS];
};

class Words {
 public:
  explicit Words(const int64_t* at) : at_(at) {}
  int64_t number() { return *at_++; }
  double real() {
    double x;
    std::memcpy(&x, at_++, sizeof x);
    return x;
  }
  Operand operand() {
    Operand x;
    x.data = reinterpret_cast<char*>(*at_++);
    x.type = *at_++;
    for (auto& stride : x.stride) stride = *at_++;
    return x;
  }

 private:
  const int64_t* at_;
};

// ---- element by element

using F = Vec<float>;

inline F lanes(float x) { return F{} + x; }

// Above 64 it is e^32 / e^(32 - x): where e^x is almost the largest number, e^-x is no normal one.
inline F exponential(F x) {
  const F e = exp_of_negative<float>(x < 0 ? x : x > 64 ? 32 - x : -x);
  return x < 0 ? e : (x > 64 ? lanes(7.896296e13f) : lanes(1)) / e;
}

inline F sigmoid(F x) {
  const F e = exp_of_negative<float>(x < 0 ? x : -x);
  return (x < 0 ? e : lanes(1)) / (1.0f + e);
}

// Where |x| is small, the series: there 1 - e^-2|x| has few digits left.
inline F hyperbolic_tangent(F x) {
  const F a = x < 0 ? -x : x, e = exp_of_negative<float>(-2.0f * a), s = x * x;
  const F far = (1.0f - e) / (1.0f + e);
  const F near = x * (1.0f + s * (-1.0f / 3 + s * (2.0f / 15 + s * (-17.0f / 315 + s * (62.0f / 2835)))));
  return a < 0.15f ? near : (x < 0 ? -far : far);
}

template <class T>
inline T scalar(int64_t code, T x, double p, double q) {
  switch (code) {
    case COPY: return x;
    case NEG: return -x;
    case EXP: return std::exp(x);
    case SIGMOID: return T(1) / (T(1) + std::exp(-x));
    case TANH: return std::tanh(x);
    case RELU: return x < 0 ? T(0) : x;
    case SILU: return x / (T(1) + std::exp(-x));
    case GELU: return T(0.5) * x * (T(1) + std::erf(x * T(0.7071067811865476)));
    case GELU_TANH:
      return T(0.5) * x * (T(1) + std::tanh(T(0.7978845608028654) * (x + T(0.044715) * x * x * x)));
    case RSQRT: return T(1) / std::sqrt(x);
    case SQRT: return std::sqrt(x);
    case SQUARE: return x * x;
    case COS: return std::cos(x);
    case SIN: return std::sin(x);
    case LOG: return std::log(x);
    case LOG_SIGMOID: return std::min(x, T(0)) - std::log1p(std::exp(-std::abs(x)));
    case SOFTPLUS: return x > 20 ? x : std::log1p(std::exp(x));
    case ELU: return x > 0 ? x : std::expm1(x);
    case ABS: return std::abs(x);
    case RECIPROCAL: return T(1) / x;
    case CLAMP: return std::min(std::max(x, T(p)), T(q));
    case POWER: return std::pow(x, T(p));
    case POWER_OF: return std::pow(T(p), x);
    case AFFINE: return T(p) * x + T(q);
    case GE: return x >= p;
    case GT: return x > p;
    case LE: return x <= p;
    default: return x < p;
  }
}

inline F vector(int64_t code, F x, float p, float q) {
  switch (code) {
    case COPY: return x;
    case NEG: return -x;
    case EXP: return exponential(x);
    case SIGMOID: return sigmoid(x);
    case TANH: return hyperbolic_tangent(x);
    case RELU: return x < 0 ? F{} : x;
    case SILU: return x * sigmoid(x);
    case SQUARE: return x * x;
    case RECIPROCAL: return 1.0f / x;
    case GELU_TANH: return 0.5f * x * (1.0f + hyperbolic_tangent(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case AFFINE: return p * x + q;
    default:
      F y;
      for (int i = 0; i < Lanes<float>::n; ++i) y[i] = scalar<float>(code, x[i], p, q);
      return y;
  }
}

template <class T, class R>
inline R two(int64_t code, R x, R y, R z, T p) {
  switch (code) {
    case ADD: return x + p * y;
    case SUB: return x - p * y;
    case MUL: return x * y;
    case DIV: return x / y;
    case MAXIMUM: return (x > y) | (x != x) ? x : y;  // NaN if one is
    case MINIMUM: return (x < y) | (x != x) ? x : y;
    case LERP: return x + z * (y - x);
    default: return x + p * y * z;  // ADDCMUL
  }
}

template <class T>
inline T* typed(const Operand& x, int64_t a, int64_t b, int64_t c) {
  return reinterpret_cast<T*>(x.data) + a * x.stride[0] + b * x.stride[1] + c * x.stride[2];
}

// Calls f(a, b, c) for the outer dimensions of a shape.
template <class Body>
inline void outer(const int64_t* size, Body f) {
  for (int64_t a = 0; a < size[0]; ++a)
    for (int64_t b = 0; b < size[1]; ++b)
      for (int64_t c = 0; c < size[2]; ++c) f(a, b, c);
}

inline F fetch(const float* x, int64_t stride, int64_t i, int64_t count) {
  if (stride == 1) return load(x + i, count);
  if (stride == 0) return lanes(*x);
  F y = {};
  for (int64_t j = 0; j < std::min<int64_t>(count, Lanes<float>::n); ++j) y[j] = x[(i + j) * stride];
  return y;
}

inline void put(float* x, int64_t stride, int64_t i, F y, int64_t count) {
  if (stride == 1) return store(x + i, y, count);
  for (int64_t j = 0; j < std::min<int64_t>(count, Lanes<float>::n); ++j) x[(i + j) * stride] = y[j];
}

template <class From, class To>
void convert(const int64_t* size, const Operand& out, const Operand& in) {
  outer(size, [&](int64_t a, int64_t b, int64_t c) {
    To* to = typed<To>(out, a, b, c);
    const From* from = typed<From>(in, a, b, c);
    for (int64_t i = 0; i < size[3]; ++i) to[i * out.stride[3]] = To(from[i * in.stride[3]]);
  });
}

template <class From>
void convert_from(const int64_t* size, const Operand& out, const Operand& in) {
  if (out.type == FLOAT32) convert<From, float>(size, out, in);
  else if (out.type == FLOAT64) convert<From, double>(size, out, in);
  else if (out.type == INT64) convert<From, int64_t>(size, out, in);
  else convert<From, bool>(size, out, in);
}

template <int64_t CODE>
void map_floats(const int64_t* size, const Operand& out, const Operand& in, float p, float q) {
  outer(size, [&](int64_t a, int64_t b, int64_t c) {
    float* to = typed<float>(out, a, b, c);
    const float* from = typed<float>(in, a, b, c);
    for (int64_t i = 0; i < size[3]; i += Lanes<float>::n)
      put(to, out.stride[3], i, vector(CODE, fetch(from, in.stride[3], i, size[3] - i), p, q), size[3] - i);
  });
}

template <class T, class To = T>
void map_any(int64_t code, const int64_t* size, const Operand& out, const Operand& in, double p, double q) {
  outer(size, [&](int64_t a, int64_t b, int64_t c) {
    To* to = typed<To>(out, a, b, c);
    const T* from = typed<T>(in, a, b, c);
    for (int64_t i = 0; i < size[3]; ++i)
      to[i * out.stride[3]] = To(scalar<double>(code, from[i * in.stride[3]], p, q));
  });
}

void map_one(int64_t code, Words w) {
  int64_t size[DIMS];
  for (auto& n : size) n = w.number();
  const Operand out = w.operand(), in = w.operand();
  const double p = w.real(), q = w.real();
  if (code == COPY && (in.type != out.type || in.type != FLOAT32)) {
    if (in.type == FLOAT32) convert_from<float>(size, out, in);
    else if (in.type == FLOAT64) convert_from<double>(size, out, in);
    else if (in.type == INT64) convert_from<int64_t>(size, out, in);
    else convert_from<bool>(size, out, in);
  } else if (code > AFFINE) {
    if (in.type == FLOAT32) map_any<float, bool>(code, size, out, in, float(p), q);
    else if (in.type == FLOAT64) map_any<double, bool>(code, size, out, in, p, q);
    else map_any<int64_t, bool>(code, size, out, in, p, q);
  } else if (in.type == FLOAT64) {
    map_any<double>(code, size, out, in, p, q);
  } else if (in.type == INT64) {
    map_any<int64_t>(code, size, out, in, p, q);
  } else {
    switch (code) {
      case COPY: return map_floats<COPY>(size, out, in, p, q);
      case NEG: return map_floats<NEG>(size, out, in, p, q);
      case EXP: return map_floats<EXP>(size, out, in, p, q);
      case SIGMOID: return map_floats<SIGMOID>(size, out, in, p, q);
      case TANH: return map_floats<TANH>(size, out, in, p, q);
      case RELU: return map_floats<RELU>(size, out, in, p, q);
      case SILU: return map_floats<SILU>(size, out, in, p, q);
      case SQUARE: return map_floats<SQUARE>(size, out, in, p, q);
      case GELU_TANH: return map_floats<GELU_TANH>(size, out, in, p, q);
      case RECIPROCAL: return map_floats<RECIPROCAL>(size, out, in, p, q);
      case AFFINE: return map_floats<AFFINE>(size, out, in, p, q);
      default:
        outer(size, [&](int64_t a, int64_t b, int64_t c) {
          float* to = typed<float>(out, a, b, c);
          const float* from = typed<float>(in, a, b, c);
          for (int64_t i = 0; i < size[3]; ++i)
            to[i * out.stride[3]] = scalar<float>(code, from[i * in.stride[3]], p, q);
        });
    }
  }
}

template <int64_t CODE>
void map_two_floats(const int64_t* size, const Operand& out, const Operand& x, const Operand& y, const Operand& z,
                    float p) {
  outer(size, [&](int64_t a, int64_t b, int64_t c) {
    float* to = typed<float>(out, a, b, c);
    const float *fx = typed<float>(x, a, b, c), *fy = typed<float>(y, a, b, c), *fz = typed<float>(z, a, b, c);
    for (int64_t i = 0; i < size[3]; i += Lanes<float>::n) {
      const int64_t count = size[3] - i;
      const F third = CODE == LERP || CODE == ADDCMUL ? fetch(fz, z.stride[3], i, count) : F{};
      const F result = two<float, F>(CODE, fetch(fx, x.stride[3], i, count), fetch(fy, y.stride[3], i, count), third, p);
      put(to, out.stride[3], i, result, count);
    }
  });
}

template <class T>
void map_two_any(int64_t code, const int64_t* size, const Operand& out, const Operand& x, const Operand& y,
                 const Operand& z, double p) {
  outer(size, [&](int64_t a, int64_t b, int64_t c) {
    T* to = typed<T>(out, a, b, c);
    const T *fx = typed<T>(x, a, b, c), *fy = typed<T>(y, a, b, c), *fz = typed<T>(z, a, b, c);
    for (int64_t i = 0; i < size[3]; ++i) {
      const T third = z.data ? fz[i * z.stride[3]] : T(0);
      to[i * out.stride[3]] = two<T, T>(code, fx[i * x.stride[3]], fy[i * y.stride[3]], third, T(p));
    }
  });
}

void map_two(int64_t code, Words w) {
  int64_t size[DIMS];
  for (auto& n : size) n = w.number();
  const Operand out = w.operand(), x = w.operand(), y = w.operand(), z = w.operand();
  const double p = w.real();
  if (out.type == FLOAT64) return map_two_any<double>(code, size, out, x, y, z, p);
  if (out.type == INT64) return map_two_any<int64_t>(code, size, out, x, y, z, p);
  switch (code) {
    case ADD: return map_two_floats<ADD>(size, out, x, y, z, p);
    case SUB: return map_two_floats<SUB>(size, out, x, y, z, p);
    case MUL: return map_two_floats<MUL>(size, out, x, y, z, p);
    case DIV: return map_two_floats<DIV>(size, out, x, y, z, p);
    case MAXIMUM: return map_two_floats<MAXIMUM>(size, out, x, y, z, p);
    case MINIMUM: return map_two_floats<MINIMUM>(size, out, x, y, z, p);
    case LERP: return map_two_floats<LERP>(size, out, x, y, z, p);
    default: return map_two_floats<ADDCMUL>(size, out, x, y, z, p);
  }
}

void choose(Words w) {  // WHERE: out, condition, x, y
  int64_t size[DIMS];
  for (auto& n : size) n = w.number();
  const Operand out = w.operand(), condition = w.operand(), x = w.operand(), y = w.operand();
  outer(size, [&](int64_t a, int64_t b, int64_t c) {
    float* to = typed<float>(out, a, b, c);
    const bool* is = typed<bool>(condition, a, b, c);
    const float *fx = typed<float>(x, a, b, c), *fy = typed<float>(y, a, b, c);
    for (int64_t i = 0; i < size[3]; ++i)
      to[i * out.stride[3]] = is[i * condition.stride[3]] ? fx[i * x.stride[3]] : fy[i * y.stride[3]];
  });
}

// ---- products

inline float dot(const float* x, const float* y, int64_t n) {
  F a = {}, b = {};
  int64_t i = 0;
  for (; i + 2 * Lanes<float>::n <= n; i += 2 * Lanes<float>::n) {
    a += load(x + i) * load(y + i);
    b += load(x + i + Lanes<float>::n) * load(y + i + Lanes<float>::n);
  }
  for (; i < n; i += Lanes<float>::n) a += load(x + i, n - i) * load(y + i, n - i);
  return sum<float>(a + b);
}

// Rows [first, last) of y = W x, W (N, K) with rows of stride `row`. Four rows share the loads of x,
// one of each quarter: memory is read faster in four places at once than in one.
void rows_times(const float* W, int64_t row, const float* x, int64_t K, int64_t first, int64_t last, float* y,
                int64_t step) {
  constexpr int n = Lanes<float>::n;
  const int64_t quarter = K % n ? 0 : (last - first) / 4;
  for (int64_t r = first; r < first + quarter; ++r) {
    const float *a = W + r * row, *b = a + quarter * row, *c = b + quarter * row, *d = c + quarter * row;
    F sa = {}, sb = {}, sc = {}, sd = {};
    for (int64_t k = 0; k < K; k += n) {
      const F v = load(x + k);
      sa += v * load(a + k), sb += v * load(b + k), sc += v * load(c + k), sd += v * load(d + k);
    }
    float *to = y + r * step, *half = to + 2 * quarter * step;
    sums<float>(sa, sb, to, to + quarter * step);
    sums<float>(sc, sd, half, half + quarter * step);
  }
  for (int64_t r = first + 4 * quarter; r < last; ++r) y[r * step] = dot(W + r * row, x, K);
}

inline F widened(const BFloat16* p) { return read(p, std::integral_constant<int64_t, 16>()); }

inline F widened(const int8_t* p) {
#ifdef __AVX512F__
  return (F)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  typedef int8_t Bytes __attribute__((vector_size(16), aligned(1), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(p), F);
#endif
}

// Rows [first, last) of y = W x, W (N, K) in fewer bits, each row times its scale if there are
// scales. Rows are padded with zeros to whole vectors. Four rows at a time are one of each quarter.
template <class T>
void narrow_rows_times(const T* W, int64_t row, const float* scales, const float* x, int64_t K, int64_t first,
                       int64_t last, float* y, int64_t step) {
  constexpr int n = Lanes<float>::n;
  static_assert(n == 16, "weights are padded to 16 numbers");
  const int64_t quarter = (last - first) / 4;
  auto rows = [&](int64_t r, auto count) {
    const T* at = W + r * row;
    F s[count] = {};
    vectors<float>(0, K, [&](int64_t k, auto lanes) {
      const F v = load(x + k, lanes);
      for (int i = 0; i < count; ++i) s[i] += v * widened(at + i * quarter * row + k);
    });
    for (int i = 0; i < count; i += 2) {
      float totals[2];
      sums<float>(s[i], s[(i + 1) % count], totals, totals + 1);
      for (int j = i; j < std::min<int>(i + 2, count); ++j) {
        const int64_t place = r + j * quarter;
        y[place * step] = totals[j - i] * (scales ? scales[place] : 1);
      }
    }
  };
  for (int64_t r = first; r < first + quarter; ++r) rows(r, std::integral_constant<int, 4>());
  for (int64_t r = first + 4 * quarter; r < last; ++r) rows(r, std::integral_constant<int, 1>());
}

// Columns [first, last) of y = x W, W (K, N) with rows of stride `row`; 64 columns at a time stay
// in registers, the sums of each quarter of the rows.
void columns_times(const float* W, int64_t row, const float* x, int64_t x_step, int64_t K, int64_t first,
                   int64_t last, float* y) {
  constexpr int n = Lanes<float>::n;
  const int64_t quarter = K / 4;
  int64_t c = first;
  for (; c + 4 * n <= last; c += 4 * n) {
    F s[4][4] = {};
    auto add = [&](int64_t k, F* sum) {
      for (int j = 0; j < 4; ++j) sum[j] += x[k * x_step] * load(W + k * row + c + j * n);
    };
    for (int64_t k = 0; k < quarter; ++k)
      for (int q = 0; q < 4; ++q) add(q * quarter + k, s[q]);
    for (int64_t k = 4 * quarter; k < K; ++k) add(k, s[0]);
    for (int j = 0; j < 4; ++j) store(y + c + j * n, F(s[0][j] + s[1][j] + (s[2][j] + s[3][j])));
  }
  for (; c < last; c += n) {
    F s = {};
    for (int64_t k = 0; k < K; ++k) s += x[k * x_step] * load(W + k * row + c, last - c);
    store(y + c, s, last - c);
  }
}

// y = x W, W (K, N) in fewer bits, with rows padded to whole vectors.
template <class T>
void narrow_columns_times(const T* W, int64_t row, const float* x, int64_t K, int64_t N, float* y) {
  constexpr int n = Lanes<float>::n;
  auto columns = [&](int64_t c, auto count) {  // so many vectors, of two halves of the rows
    F s[2][count] = {};
    auto add = [&](int64_t k, F* sum) {
      for (int j = 0; j < count; ++j) sum[j] += x[k] * widened(W + k * row + c + j * n);
    };
    for (int64_t k = 0; k < K / 2; ++k) add(k, s[0]), add(K / 2 + k, s[1]);
    if (K % 2) add(K - 1, s[0]);
    for (int j = 0; j < count; ++j) store(y + c + j * n, F(s[0][j] + s[1][j]), N - c - j * n);
  };
  int64_t c = 0;
  for (; c + 3 * n < N; c += 4 * n) columns(c, std::integral_constant<int, 4>());
  for (; c < N; c += n) columns(c, std::integral_constant<int, 1>());
}

// out (A, M, N) = x (A, M, K) times W (A, K, N), plus a bias (N) if there is one. Columns of W in
// fewer bits are contiguous, and have scales (A, N) if they are in int8.
struct Product {
  int64_t A, M, K, N;
  Operand out, x, W, bias, scales;
  bool by_rows, by_columns;
  explicit Product(Words w)
      : A(w.number()), M(w.number()), K(w.number()), N(w.number()), out(w.operand()), x(w.operand()),
        W(w.operand()), bias(w.operand()), scales(w.operand()), by_rows(W.stride[1] == 1 && x.stride[2] == 1),
        by_columns(W.stride[2] == 1 && out.stride[2] == 1) {}
  int64_t blocks() const { return (N + BLOCK - 1) / BLOCK; }
  bool reads(const Product& other) const {
    const char* last = reinterpret_cast<char*>(typed<float>(other.out, other.A - 1, other.M - 1, other.N - 1));
    auto touches = [&](const Operand& from, int64_t i, int64_t j) {
      const char* end = reinterpret_cast<char*>(typed<float>(from, A - 1, i - 1, j - 1));
      return from.data <= last && end >= other.out.data;
    };
    const char* b = bias.data;  // N numbers
    return touches(x, M, K) || (W.type == FLOAT32 && touches(W, K, N)) ||
           (b && b <= last && b + (N - 1) * bias.stride[0] * int64_t(sizeof(float)) >= other.out.data);
  }
  void part(int64_t first, int64_t last) const {
    for (int64_t a = 0; a < A; ++a)
      for (int64_t m = 0; m < M; ++m) {
        float* to = typed<float>(out, a, m, 0);
        const float *from = typed<float>(x, a, m, 0), *matrix = typed<float>(W, a, 0, 0);
        if (W.type == BFLOAT16) {
          narrow_rows_times(typed<BFloat16>(W, a, 0, 0), W.stride[2], nullptr, from, K, first, last, to, out.stride[2]);
        } else if (W.type == INT8) {
          narrow_rows_times(typed<int8_t>(W, a, 0, 0), W.stride[2], typed<float>(scales, a, 0, 0), from, K, first, last,
                            to, out.stride[2]);
        } else if (by_rows) {
          rows_times(matrix, W.stride[2], from, K, first, last, to, out.stride[2]);
        } else if (by_columns) {
          columns_times(matrix, W.stride[1], from, x.stride[2], K, first, last, to);
        } else {
          for (int64_t j = first; j < last; ++j) {
            float total = 0;
            for (int64_t k = 0; k < K; ++k) total += from[k * x.stride[2]] * matrix[k * W.stride[1] + j * W.stride[2]];
            to[j * out.stride[2]] = total;
          }
        }
        if (bias.data) {
          const float* b = reinterpret_cast<const float*>(bias.data);
          for (int64_t j = first; j < last; ++j) to[j * out.stride[2]] += b[j * bias.stride[0]];
        }
      }
  }
};

// The products from `at` on that follow each other and read nothing of each other, in blocks of
// columns that the threads share out: one parallel region for all. Returns the instruction after.
const int64_t* multiply(const int64_t* at, const int64_t* end) {
  std::vector<Product> products;
  int64_t blocks = 0, work = 0;
  for (; at < end && at[0] == MATMUL; at += 2 + at[1]) {
    const Product next{Words(at + 2)};
    if (std::any_of(products.begin(), products.end(), [&](const Product& p) { return next.reads(p); })) break;
    products.push_back(next);
    blocks += next.blocks(), work += next.A * next.M * next.K * next.N;
  }
#pragma omp parallel for schedule(static) if (work > SMALL)
  for (int64_t block = 0; block < blocks; ++block) {
    int64_t i = 0, first = block;
    while (first >= products[i].blocks()) first -= products[i++].blocks();
    products[i].part(first * BLOCK, std::min(products[i].N, (first + 1) * BLOCK));
  }
  return at;
}

// ---- over a last dimension of D numbers

void reduce(int64_t code, Words w) {  // sums over the last dimension
  int64_t size[DIMS];
  for (auto& n : size) n = w.number();
  const Operand out = w.operand(), in = w.operand();
  outer(size, [&](int64_t a, int64_t b, int64_t c) {
    const float* from = typed<float>(in, a, b, c);
    F total = code == AMAX ? lanes(*from) : F{};
    float rest = code == AMAX ? *from : 0;
    int64_t i = 0;
    for (; i + Lanes<float>::n <= size[3]; i += Lanes<float>::n) {
      const F x = fetch(from, in.stride[3], i, Lanes<float>::n);
      total = code == AMAX ? two<float, F>(MAXIMUM, x, total, F{}, 0) : total + x;
    }
    for (; i < size[3]; ++i) {
      const float x = from[i * in.stride[3]];
      rest = code == AMAX ? two<float, float>(MAXIMUM, x, rest, 0, 0) : rest + x;
    }
    if (code == AMAX)
      for (int j = 0; j < Lanes<float>::n; ++j) rest = two<float, float>(MAXIMUM, total[j], rest, 0, 0);
    else
      rest += sum<float>(total);
    *typed<float>(out, a, b, c) = code == MEAN ? rest / size[3] : rest;
  });
}

void exponentials(const float* from, float* to, int64_t D) {
  F highest = lanes(from[0]), total = {};
  for (int64_t i = 0; i < D; i += Lanes<float>::n) {
    F x = load(from + i, D - i);
    for (int64_t j = D - i; j < Lanes<float>::n; ++j) x[j] = from[0];
    highest = x > highest ? x : highest;
  }
  const float top = largest<float>(highest);
  for (int64_t i = 0; i < D; i += Lanes<float>::n) {
    F e = exp_of_negative<float>(load(from + i, D - i) - top);
    for (int64_t j = D - i; j < Lanes<float>::n; ++j) e[j] = 0;
    total += e;
    store(to + i, e, D - i);
  }
  const float scale = 1 / sum<float>(total);
  for (int64_t i = 0; i < D; ++i) to[i] *= scale;
}

void softmax(Words w) {
  const int64_t R = w.number(), D = w.number();
  const Operand out = w.operand(), in = w.operand();
  for (int64_t r = 0; r < R; ++r)
    exponentials(typed<float>(in, r, 0, 0), typed<float>(out, r, 0, 0), D);
}

// R rows in groups of D numbers, each of mean 0 and variance 1; weight and bias of G groups, or one.
void normalise(Words w) {
  const int64_t R = w.number(), D = w.number(), G = w.number();
  const Operand out = w.operand(), in = w.operand(), weight = w.operand(), bias = w.operand();
  const float eps = w.real();
  for (int64_t r = 0; r < R; ++r) {
    const float* from = reinterpret_cast<const float*>(in.data) + r * D;
    float* to = reinterpret_cast<float*>(out.data) + r * D;
    const int64_t at = r % G * D;
    F total = {}, squares = {};
    for (int64_t i = 0; i < D; i += Lanes<float>::n) total += load(from + i, D - i);
    const float mean = sum<float>(total) / D;
    for (int64_t i = 0; i < D; i += Lanes<float>::n) {
      F x = load(from + i, D - i) - mean;
      for (int64_t j = D - i; j < Lanes<float>::n; ++j) x[j] = 0;
      squares += x * x;
    }
    const float scale = 1 / std::sqrt(sum<float>(squares) / D + eps);
    for (int64_t i = 0; i < D; i += Lanes<float>::n) {
      F x = (load(from + i, D - i) - mean) * scale;
      if (weight.data) x *= load(reinterpret_cast<const float*>(weight.data) + at + i, D - i);
      if (bias.data) x += load(reinterpret_cast<const float*>(bias.data) + at + i, D - i);
      store(to + i, x, D - i);
    }
  }
}

// R rows of a table of N, those from `least` to -1 counted from its end. False: there is no such row.
bool embed(Words w) {
  const int64_t R = w.number(), D = w.number(), least = w.number(), N = w.number();
  const Operand out = w.operand(), table = w.operand(), index = w.operand();
  for (int64_t r = 0; r < R; ++r) {
    const int64_t row = *typed<int64_t>(index, r, 0, 0);
    if (row < least || row >= N) return false;
    copy<float>(typed<float>(table, row < 0 ? row + N : row, 0, 0), D, typed<float>(out, r, 0, 0));
  }
  return true;
}

// ---- attention to a cache

// Keys or values (B, G, capacity, K) in float32, or rounded, with rows padded to whole vectors; in
// int8 with a scale for each row.
struct Cache {
  Operand rows, scales;
  explicit Cache(Words& w) : rows(w.operand()), scales(w.operand()) {}
  const float* scales_of(int64_t b, int64_t g) const { return typed<float>(scales, b, g, 0); }

  void write(const Operand& x, int64_t b, int64_t g, int64_t at, int64_t K) const {
    const float* from = typed<float>(x, b, g, 0);
    if (rows.type == FLOAT32) {
      for (int64_t i = 0; i < K; ++i) typed<float>(rows, b, g, at)[i] = from[i * x.stride[3]];
      return;
    }
    Buffer<float> row(round_up(K, Lanes<float>::n));
    float most = 0, wrong = 0;  // wrong: NaN if a number is not finite
    for (int64_t i = 0; i < K; ++i) {
      row[i] = from[i * x.stride[3]];
      most = std::max(most, std::abs(row[i])), wrong += 0 * row[i];
    }
    if (rows.type == BFLOAT16) {
      for (int64_t i = 0; i < K; i += Lanes<float>::n)
        ::write(typed<BFloat16>(rows, b, g, at) + i, load(row + i), Lanes<float>::n);
    } else {
      const float scale = most / 127;
      typed<float>(scales, b, g, 0)[at] = scale + wrong;
      for (int64_t i = 0; i < K; ++i)
        typed<int8_t>(rows, b, g, at)[i] = wrong == 0 ? int8_t(std::nearbyint(row[i] / std::max(scale, 1e-30f))) : 0;
    }
  }
  // to (S) = the first S rows times x (K).
  void times(const float* x, int64_t b, int64_t g, int64_t S, int64_t K, float* to) const {
    const int64_t row = rows.stride[2];
    if (rows.type == FLOAT32) rows_times(typed<float>(rows, b, g, 0), row, x, K, 0, S, to, 1);
    else if (rows.type == BFLOAT16)
      narrow_rows_times(typed<BFloat16>(rows, b, g, 0), row, nullptr, x, K, 0, S, to, 1);
    else narrow_rows_times(typed<int8_t>(rows, b, g, 0), row, scales_of(b, g), x, K, 0, S, to, 1);
  }
  // to (K) = the sum of the first S rows, each times its weight, which is changed.
  void mean(float* weights, int64_t b, int64_t g, int64_t S, int64_t K, float* to) const {
    const int64_t row = rows.stride[2];
    if (rows.type == FLOAT32) return columns_times(typed<float>(rows, b, g, 0), row, weights, 1, S, 0, K, to);
    if (rows.type == BFLOAT16)
      return narrow_columns_times(typed<BFloat16>(rows, b, g, 0), row, weights, S, K, to);
    for (int64_t j = 0; j < S; ++j) weights[j] *= scales_of(b, g)[j];
    narrow_columns_times(typed<int8_t>(rows, b, g, 0), row, weights, S, K, to);
  }
};

// Softmax attention of one query a row to keys and values that the token's own are written to first:
// behind the `before` ones of the beginning and those of the `read` tokens since. With a window its
// places are used in turn, and a row has filled those of as many tokens as `position` (B) says. With
// forget gates log_f (B, H) they are kept as keys are.
void attend(Words w) {
  const int64_t B = w.number(), H = w.number(), G = w.number(), K = w.number();
  const int64_t before = w.number(), window = w.number();
  const Operand out = w.operand(), q = w.operand(), k = w.operand(), v = w.operand();
  const Cache keys(w), values(w);
  const Operand read = w.operand(), position = w.operand();
  const Operand sinks = w.operand(), log_f = w.operand(), forgets = w.operand();
  const float softcap = w.real();
  const int64_t all = before + *reinterpret_cast<const int64_t*>(read.data);
  const int64_t at = window ? all % window : all, S = window ? window : all + 1;
  const float scale = 1 / std::sqrt(float(K));
  for (int64_t b = 0; b < B; ++b)
    for (int64_t g = 0; g < G; ++g) keys.write(k, b, g, at, K), values.write(v, b, g, at, K);
#pragma omp parallel for if (B * H * S * K > SMALL)
  for (int64_t job = 0; job < B * H; ++job) {
    const int64_t b = job / H, h = job % H, g = h / (H / G);
    Buffer<float> query(round_up(K, Lanes<float>::n)), weights(round_up(S + 1, Lanes<float>::n));  // 1: a sink
    for (int64_t i = 0; i < K; ++i) query[i] = typed<float>(q, b, h, 0)[i * q.stride[3]] * scale;
    keys.times(query, b, g, S, K, weights);
    if (forgets.data) {
      float *gates = typed<float>(forgets, b, h, 0), since = 0;
      gates[all] = *typed<float>(log_f, b, h, 0);
      for (int64_t j = all; j > 0; --j) weights[j - 1] += since += gates[j];
    }
    if (softcap > 0)
      for (int64_t j = 0; j < S; ++j) weights[j] = softcap * std::tanh(weights[j] / softcap);
    if (window)
      for (int64_t age = *typed<int64_t>(position, b, 0, 0) + 1; age < window; ++age)
        weights[(at + window - age) % window] = -std::numeric_limits<float>::infinity();
    if (sinks.data) weights[S] = *typed<float>(sinks, h, 0, 0);
    exponentials(weights, weights, S + (sinks.data ? 1 : 0));
    values.mean(weights, b, g, S, K, typed<float>(out, b, h, 0));
  }
}

}  // namespace

// Returns 0, or 1 where an index is outside of its table: then nothing after it has run.
extern "C" int program_run_float32(const int64_t* words) {
  const int64_t* end = words + 1 + *words;
  for (const int64_t* at = words + 1; at < end;) {
    const int64_t code = at[0];
    if (code == MATMUL) {
      at = multiply(at, end);
      continue;
    }
    const Words w(at + 2);
    at += 2 + at[1];
    if (code <= LT) map_one(code, w);
    else if (code < WHERE) map_two(code, w);
    else if (code == WHERE) choose(w);
    else if (code <= AMAX) reduce(code, w);
    else if (code == SOFTMAX) softmax(w);
    else if (code <= GROUP_NORM) normalise(w);
    else if (code == ATTEND) attend(w);
    else if (!embed(w)) return 1;
  }
  return 0;
}
