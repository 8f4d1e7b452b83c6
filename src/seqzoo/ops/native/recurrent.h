// What recurrences with a matrix between two tokens share: the matrix, packed, and loops over rows.
// T is the type of states and gates, P that of the factors of the products: bfloat16 only there.
#pragma once
#include "products.h"

constexpr int64_t ROWS = 8;     // rows of the batch that a block reads at once
constexpr int PANEL = 3;        // vectors of columns at once: with ROWS, sums fill the registers
constexpr int64_t FEW = 1 << 16;  // products below which a second thread costs more than it saves

// ---- the product of a few rows with a matrix

template <class T, class P>
using Multiply = void (*)(const P*, int64_t, int64_t, const P*, T*, int64_t);

template <class T, class P, int R, int N>
constexpr Multiply<T, P> product = multiply_panel<T, P, R, N, false, R * N >= 8 ? 1 : R * N >= 3 ? 2 : 4>;

template <class T, class P, int N>
constexpr Multiply<T, P> of_rows[ROWS] = {product<T, P, 1, N>, product<T, P, 2, N>, product<T, P, 3, N>,
                                          product<T, P, 4, N>, product<T, P, 5, N>, product<T, P, 6, N>,
                                          product<T, P, 7, N>, product<T, P, 8, N>};

// The recurrent weights U (G D, D), as a matrix of K rows. Forward its columns are the G gates of
// each vector of units, backward vectors of the state before.
template <class T, class P>
struct Matrix {
  static constexpr int n = Lanes<T>::n;
  View<T> U;
  int64_t D, G, padded;  // padded: D rounded up to whole vectors
  bool backward;
  int64_t K, each, vectors, panels;  // of columns; each: vectors for a vector of units
  Buffer<P> memory;

  Matrix(View<T> U, int64_t D, int64_t G, bool backward)
      : U(U), D(D), G(G), padded(round_up(D, n)), backward(backward), K(backward ? G * padded : padded),
        each(backward ? 1 : G), vectors(padded / n * each), panels((vectors + PANEL - 1) / PANEL),
        memory(G * padded * padded) {}

  // Write a panel: all K rows of up to PANEL vectors.
  void pack(int64_t panel) {
    const int64_t first = panel * PANEL, N = std::min<int64_t>(PANEL, vectors - first);
    for (int64_t c = 0; c < N; ++c) {
      const int64_t vector = first + c, unit = vector / each * n;
      const int64_t lanes = std::min<int64_t>(n, D - unit);
      for (int64_t g = 0; g < G / each; ++g)
        for (int64_t i = 0; i < D; ++i) {
          const T* u = backward ? U.at(g * D + i) + unit : U.at(vector % each * D + unit) + i;
          const int64_t apart = backward ? 1 : U.stride[0], k = g * padded + i;
          P* to = memory + first * K * n + (k / step<P> * N + c) * n * step<P> + k % step<P>;
          for (int64_t lane = 0; lane < lanes; ++lane) round_to(u[lane * apart], to + lane * step<P>);
        }
    }
  }

  // out (R, width): rows (R, K) times the matrix.
  void multiply(const P* rows, int64_t R, T* out, int64_t width) {
    for (int64_t first = 0; first < vectors; first += PANEL) {
      const int64_t N = vectors - first;
      const auto rows_of = N == 1 ? of_rows<T, P, 1> : N == 2 ? of_rows<T, P, 2> : of_rows<T, P, 3>;
      rows_of[R - 1](rows, K, K, memory + first * K * n, out + first * n, width);
    }
  }
};

// Calls f(r, u, count) for the vectors of a block of R rows: units from u, of which `count` are there.
template <class T, class F>
inline void each(int64_t R, int64_t D, F f) {
  constexpr int n = Lanes<T>::n;
  for (int64_t r = 0; r < R; ++r)
    for (int64_t u = 0; u < D; u += n) f(r, u, std::min<int64_t>(n, D - u));
}
