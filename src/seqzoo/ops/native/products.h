// Products of a few rows with a packed matrix. T is the type of sums, P that of the factors:
// bfloat16 where the CPU multiplies it, or T.
#pragma once
#include "common.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

// ---- numbers of type P as vectors of T

inline void round_to(float x, float* to) { *to = x; }
inline void round_to(double x, double* to) { *to = x; }

// 1 / x, to the last digit but one.
inline Vec<float> reciprocal(Vec<float> x) {
#ifdef __AVX512F__
  const Vec<float> near = (Vec<float>)_mm512_rcp14_ps((__m512)x);
  return near * (2.0f - x * near);
#else
  return 1.0f / x;
#endif
}

// The numbers that a lane multiplies at once, as one number of type T: of `step` rows, whose numbers
// are of type T or P; those of the rows that are missing are 0.
inline Vec<float> steps(const Vec<float>* rows, float) { return *rows; }
inline Vec<double> steps(const Vec<double>* rows, double) { return *rows; }
inline Vec<float> steps(const float* p, int64_t, int64_t, int64_t count) { return load(p, count); }
inline Vec<double> steps(const double* p, int64_t, int64_t, int64_t count) { return load(p, count); }

// sum += one step of a product: `row` holds the numbers of a row, `columns` a vector of columns.
template <class T>
inline void add_product(const T* row, const T* columns, Vec<T>& sum) { sum += *row * load(columns); }

template <class P>
constexpr int64_t step = 1;  // factors that a lane multiplies at once

#ifdef __AVX512BF16__
template <>
constexpr int64_t step<BFloat16> = 2;

inline void round_to(float x, BFloat16* to) {
  const __m128bh rounded = _mm_cvtneps_pbh(_mm_set_ss(x));
  std::memcpy(to, &rounded, sizeof *to);
}

inline Vec<float> pairs(__m256i even, __m256i odd) {
  return (Vec<float>)_mm512_or_si512(_mm512_cvtepu16_epi32(even),
                                     _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

inline Vec<float> steps(const Vec<float>* rows, BFloat16) {
  return pairs((__m256i)_mm512_cvtneps_pbh((__m512)rows[0]), (__m256i)_mm512_cvtneps_pbh((__m512)rows[1]));
}

inline Vec<float> steps(const BFloat16* p, int64_t apart, int64_t rows, int64_t count) {
  return pairs(bits(p, count), rows > 1 ? bits(p + apart, count) : __m256i{});
}

inline void add_product(const BFloat16* row, const BFloat16* columns, Vec<float>& sum) {
  int32_t pair;
  std::memcpy(&pair, row, sizeof pair);
  sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(columns),
                                     (__m512bh)_mm512_set1_epi32(pair));
}
#endif

// out (R, N vectors) = or, with ADD, += R rows, `apart` from each other, times N vectors of columns.
// The panel has all columns of `step` factors, then of the next. K is a multiple of `step`, and of
// AT_ONCE of them: few sums would wait for each other, so they are split into that many.
template <class T, class P, int R, int N, bool ADD = false, int AT_ONCE = 1>
void multiply_panel(const P* rows, int64_t apart, int64_t K, const P* panel, T* out, int64_t width) {
  constexpr int n = Lanes<T>::n;
  Vec<T> sum[AT_ONCE][R][N] = {};
  for (int64_t k = 0; k < K; k += AT_ONCE * step<P>, panel += AT_ONCE * N * n * step<P>)
#pragma GCC unroll 4
    for (int i = 0; i < AT_ONCE; ++i)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < N; ++c)
          add_product(rows + r * apart + k + i * step<P>, panel + (i * N + c) * n * step<P>, sum[i][r][c]);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < N; ++c) {
      for (int i = 1; i < AT_ONCE; ++i) sum[0][r][c] += sum[i][r][c];
      if (ADD) sum[0][r][c] += load(out + r * width + c * n);
      store(out + r * width + c * n, sum[0][r][c]);
    }
}
