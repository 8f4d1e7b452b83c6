// Operations on a token and a few before it. The equations are those of seqzoo/ops/local.py.
#include "common.h"

namespace {

constexpr int64_t SMALL = 1 << 14;  // numbers below which a second thread costs more than it saves
constexpr int MOST = 8;             // mixes at once, and taps of a convolution

// ---- mixes of a token with the one before it

template <class T, class To>
void shift(Arguments from) {
  const int64_t n = from.number(), B = from.number(), L = from.number(), D = from.number();
  auto x = from.tensor<T>(), last = from.tensor<T>(), mixes = from.tensor<T>();
  View<To> out[MOST];
  for (int64_t i = 0; i < n; ++i) out[i] = from.tensor<To>();
#pragma omp parallel for collapse(2) if (B * L * D > SMALL)
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < L; ++t) {
      const T *now = x.at(b, t), *before = t ? x.at(b, t - 1) : last.at(b);
      for (int64_t d = 0; d < D; d += Lanes<T>::n) {
        const int64_t count = D - d;
        const Vec<T> own = load(now + d, count), step = load(before + d, count) - own;
        for (int64_t i = 0; i < n; ++i)
          write(out[i].at(b, t) + d, Vec<T>(own + load(mixes.at(i) + d, count) * step), count);
      }
    }
}

template <class T, class To>
void shift_back(Arguments from) {
  const int64_t n = from.number(), B = from.number(), L = from.number(), D = from.number();
  auto x = from.tensor<T>(), last = from.tensor<T>(), mixes = from.tensor<T>();
  auto of_x = from.tensor<T>(), of_last = from.tensor<T>(), of_mixes = from.tensor<T>();
  View<To> given[MOST];
  for (int64_t i = 0; i < n; ++i) given[i] = from.tensor<To>();
  const int64_t lines = (D + Lanes<T>::n - 1) / Lanes<T>::n;
#pragma omp parallel for if (B * L * D > SMALL)
  for (int64_t job = 0; job < B * lines; ++job) {
    const int64_t b = job / lines, d = job % lines * Lanes<T>::n, count = D - d;
    Vec<T> m[MOST], of_m[MOST] = {}, later = {};  // later: the gradient by the token after
    for (int64_t i = 0; i < n; ++i) m[i] = load(mixes.at(i) + d, count);
    for (int64_t t = L - 1; t >= 0; --t) {
      const Vec<T> own = load(x.at(b, t) + d, count);
      const Vec<T> step = load((t ? x.at(b, t - 1) : last.at(b)) + d, count) - own;
      Vec<T> total = {}, moved = {};
      for (int64_t i = 0; i < n; ++i) {
        if (!given[i]) continue;
        const Vec<T> g = read(given[i].at(b, t) + d, count);
        total += g;
        moved += g * m[i];
        of_m[i] += g * step;
      }
      store(of_x.at(b, t) + d, Vec<T>(total - moved + later), count);
      later = moved;
    }
    store(of_last.at(b) + d, later, count);
    for (int64_t i = 0; i < n; ++i) store(of_mixes.at(b, i) + d, of_m[i], count);
  }
}

// ---- a causal convolution along time, each channel by itself

template <class T>
void convolve(Arguments from) {
  const int64_t B = from.number(), L = from.number(), D = from.number(), W = from.number();
  auto x = from.tensor<T>(), seen = from.tensor<T>(), taps = from.tensor<T>(), y = from.tensor<T>();
#pragma omp parallel for collapse(2) if (B * L * D > SMALL)
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < L; ++t)
      for (int64_t d = 0; d < D; d += Lanes<T>::n) {
        Vec<T> total = {};
        for (int64_t i = 0; i < W; ++i) {
          const int64_t p = t + i - (W - 1);  // tap i reads token p
          const T* token = p < 0 ? seen.at(b, p + W - 1) : x.at(b, p);
          total += load(taps.at(i) + d, D - d) * load(token + d, D - d);
        }
        store(y.at(b, t) + d, total, D - d);
      }
}

template <class T>
void convolve_back(Arguments from) {
  const int64_t B = from.number(), L = from.number(), D = from.number(), W = from.number();
  auto x = from.tensor<T>(), seen = from.tensor<T>(), taps = from.tensor<T>(), given = from.tensor<T>();
  auto of_x = from.tensor<T>(), of_seen = from.tensor<T>(), of_taps = from.tensor<T>();
  const int64_t lines = (D + Lanes<T>::n - 1) / Lanes<T>::n;
#pragma omp parallel for if (B * L * D > SMALL)
  for (int64_t job = 0; job < B * lines; ++job) {
    const int64_t b = job / lines, d = job % lines * Lanes<T>::n, count = D - d;
    Vec<T> tap[MOST], of_tap[MOST] = {};
    for (int64_t i = 0; i < W; ++i) tap[i] = load(taps.at(i) + d, count);
    for (int64_t p = 1 - W; p < L; ++p) {  // token p is read by tap i for the output of p + W - 1 - i
      const Vec<T> token = load((p < 0 ? seen.at(b, p + W - 1) : x.at(b, p)) + d, count);
      Vec<T> total = {};
      for (int64_t i = 0; i < W; ++i) {
        const int64_t t = p + W - 1 - i;
        if (t < 0 || t >= L) continue;
        const Vec<T> g = load(given.at(b, t) + d, count);
        total += tap[i] * g;
        of_tap[i] += token * g;
      }
      store((p < 0 ? of_seen.at(b, p + W - 1) : of_x.at(b, p)) + d, total, count);
    }
    for (int64_t i = 0; i < W; ++i) store(of_taps.at(b, i) + d, of_tap[i], count);
  }
}

}  // namespace

extern "C" {
void token_shift_forward_float32(const int64_t* from) { shift<float, float>(Arguments(from)); }
void token_shift_forward_float64(const int64_t* from) { shift<double, double>(Arguments(from)); }
void token_shift_forward_to_bfloat16_float32(const int64_t* from) { shift<float, BFloat16>(Arguments(from)); }
void token_shift_backward_float32(const int64_t* from) { shift_back<float, float>(Arguments(from)); }
void token_shift_backward_float64(const int64_t* from) { shift_back<double, double>(Arguments(from)); }
void token_shift_backward_to_bfloat16_float32(const int64_t* from) { shift_back<float, BFloat16>(Arguments(from)); }
void causal_conv_forward_float32(const int64_t* from) { convolve<float>(Arguments(from)); }
void causal_conv_forward_float64(const int64_t* from) { convolve<double>(Arguments(from)); }
void causal_conv_backward_float32(const int64_t* from) { convolve_back<float>(Arguments(from)); }
void causal_conv_backward_float64(const int64_t* from) { convolve_back<double>(Arguments(from)); }
}
