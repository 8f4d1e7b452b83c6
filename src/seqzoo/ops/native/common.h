// Vectors of one cache line, equal shares for threads, and the arguments that Python hands over.
#pragma once
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

constexpr int64_t SMALL = 1 << 14;  // numbers below which a second thread costs more than it saves
constexpr int64_t PIECE = 64;       // tokens of a head that one thread computes at least

template <class T>
struct Lanes {
  static constexpr int n = 64 / sizeof(T);
  typedef T Vec __attribute__((vector_size(64)));
  typedef T Loose __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));  // anywhere
};

template <class T>
using Vec = typename Lanes<T>::Vec;

template <class T>
inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Lanes<T>::Loose*>(p);
}

template <class T>
inline void store(T* p, Vec<T> x) {
  *reinterpret_cast<typename Lanes<T>::Loose*>(p) = x;
}

// The same of the first `count` lanes only; the others are 0, or not written.
template <class T>
inline Vec<T> load(const T* p, int64_t count) {
  if (count >= Lanes<T>::n) return load(p);
  Vec<T> x = {};
  for (int64_t i = 0; i < count; ++i) x[i] = p[i];
  return x;
}

template <class T>
inline void store(T* p, Vec<T> x, int64_t count) {
  if (count >= Lanes<T>::n) return store(p, x);
  for (int64_t i = 0; i < count; ++i) p[i] = x[i];
}

// Calls f(d, count) for every vector of the numbers from `first` to `last`. Of a whole vector the
// count is known when the kernel is compiled, so that no lane is asked for.
template <class T, class Body>
inline void vectors(int64_t first, int64_t last, Body f) {
  constexpr int n = Lanes<T>::n;
  int64_t d = first;
  for (; d + n <= last; d += n) f(d, std::integral_constant<int64_t, n>());
  if (d < last) f(d, last - d);
}

// ---- bfloat16: numbers are read as float32 and rounded when they are written

struct BFloat16 {
  uint16_t bits;
};

inline Vec<float> read(const float* p, int64_t count) { return load(p, count); }
inline Vec<double> read(const double* p, int64_t count) { return load(p, count); }
inline void write(float* p, Vec<float> x, int64_t count) { store(p, x, count); }
inline void write(double* p, Vec<double> x, int64_t count) { store(p, x, count); }

#ifdef __AVX512BF16__
inline __m256i bits(const BFloat16* p, int64_t count) {
  return count >= 16 ? _mm256_loadu_si256((const __m256i*)p) : _mm256_maskz_loadu_epi16((1 << count) - 1, p);
}

inline Vec<float> read(const BFloat16* p, int64_t count) {
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits(p, count)), 16);
}

// The nearest numbers, ties to even; 0 for those below the smallest normal number.
inline void write(BFloat16* p, Vec<float> x, int64_t count) {
  const __m256i rounded = (__m256i)_mm512_cvtneps_pbh((__m512)x);
  if (count >= 16) _mm256_storeu_si256((__m256i*)p, rounded);
  else _mm256_mask_storeu_epi16(p, (1 << count) - 1, rounded);
}
#else
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint16_t LooseHalves __attribute__((vector_size(32), aligned(2), may_alias));

inline Vec<float> read(const BFloat16* p, int64_t count) {
  Halves half = {};
  if (count >= 16) half = *reinterpret_cast<const LooseHalves*>(p);
  else
    for (int64_t i = 0; i < count; ++i) half[i] = p[i].bits;
  const Bits words = __builtin_convertvector(half, Bits) << 16;
  Vec<float> x;
  std::memcpy(&x, &words, sizeof x);
  return x;
}

inline void write(BFloat16* p, Vec<float> x, int64_t count) {  // to the nearest, ties to even
  Bits words;
  std::memcpy(&words, &x, sizeof x);
  const Bits nearest = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  const Halves half = __builtin_convertvector(x == x ? nearest : (words >> 16) | 0x40, Halves);  // NaN stays NaN
  if (count >= 16) *reinterpret_cast<LooseHalves*>(p) = half;
  else
    for (int64_t i = 0; i < count; ++i) p[i].bits = half[i];
}
#endif

// A copy of few numbers, without the call of a function.
template <class T>
inline void copy(const T* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + Lanes<T>::n <= count; i += Lanes<T>::n) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = from[i];
}

// Whole numbers of the width of T, lane by lane.
template <class T>
using Whole = decltype(Vec<T>{} < Vec<T>{});

// Lanes in another order; the numbers of those of y follow those of x. The order is a constant, as
// the processor wants it.
template <class T, int FLIP, int... I>
inline Vec<T> flipped(Vec<T> x, std::integer_sequence<int, I...>) {
  return __builtin_shuffle(x, Whole<T>{(I ^ FLIP)...});
}

// The sum of every 2 FLIP neighbouring lanes, in each of them.
template <class T, int FLIP>
inline Vec<T> summed(Vec<T> x) {
  x += flipped<T, FLIP>(x, std::make_integer_sequence<int, Lanes<T>::n>());
  if constexpr (FLIP > 1) return summed<T, FLIP / 2>(x);
  else return x;
}

template <class T>
inline T sum(Vec<T> x) {
  return summed<T, Lanes<T>::n / 2>(x)[0];
}

// In every 2 G neighbouring lanes, first G sums of two lanes of x, then G of y.
template <class T, int G, int... I>
inline Vec<T> folded(Vec<T> x, Vec<T> y, std::integer_sequence<int, I...>) {
  constexpr int n = Lanes<T>::n;
  return __builtin_shuffle(x, y, Whole<T>{((I & G) ? I - G + n : I)...}) +
         __builtin_shuffle(x, y, Whole<T>{((I & G) ? I + n : I + G)...});
}

// The sums of two vectors at once.
template <class T>
inline void sums(Vec<T> x, Vec<T> y, T* of_x, T* of_y) {
  constexpr int n = Lanes<T>::n;
  const Vec<T> both = summed<T, n / 4>(folded<T, n / 2>(x, y, std::make_integer_sequence<int, n>()));
  *of_x = both[0], *of_y = both[n / 2];
}

// Lane i is the sum of vector i, of as many vectors as there are lanes.
template <class T, int G = Lanes<T>::n / 2>
inline Vec<T> sums(const T* vectors) {
  constexpr int n = Lanes<T>::n;
  constexpr auto lanes = std::make_integer_sequence<int, n>();
  if constexpr (G == 0) return load(vectors);
  else return folded<T, n / 2 / G>(sums<T, G / 2>(vectors), sums<T, G / 2>(vectors + n / 2 / G * n), lanes);
}

// e^x for x <= 0, by default to the last digit but one; 0 where that is below the smallest normal
// number.
template <class T, int TERMS = sizeof(T) == 8 ? 13 : 7>
inline Vec<T> exp_of_negative(Vec<T> x) {
  constexpr bool wide = sizeof(T) == 8;
  constexpr T least = wide ? T(-708) : T(-87), log2_e = T(1.4426950408889634);
  constexpr T high = wide ? T(6.93147180369123816490e-01) : T(0.693359375);
  constexpr T low = wide ? T(1.90821492927058770002e-10) : T(-2.12194440e-4);
  const Vec<T> within = x < least ? Vec<T>{} + least : x;
  const auto power = __builtin_convertvector(within * log2_e - T(0.5), Whole<T>);  // nearest
  const Vec<T> n = __builtin_convertvector(power, Vec<T>), r = within - n * high - n * low;
  constexpr T factorials[] = {1, 1, 2, 6, 24, 120, 720, 5040, 40320, 362880, 3628800, 39916800, 479001600};
  Vec<T> y = {};
#pragma GCC unroll 16
  for (int i = TERMS - 1; i >= 0; --i) y = y * r + T(1) / factorials[i];  // the series of e^r
  const auto scale = (power + (wide ? 1023 : 127)) << (wide ? 52 : 23);
  Vec<T> two;
  std::memcpy(&two, &scale, sizeof two);
  return x < least ? Vec<T>{} : y * two;
}

// sigmoid(x) = numerator / denominator, and neither overflows.
template <class T>
struct Sigmoid {
  Vec<T> numerator, denominator;
  explicit Sigmoid(Vec<T> x) {
    const Vec<T> e = exp_of_negative<T>(x < 0 ? x : -x);
    numerator = x < 0 ? e : Vec<T>{} + T(1);
    denominator = T(1) + e;
  }
};

// Row i of `x`, as many vectors as a vector has lanes, becomes lane i of all.
template <class T, int HALF, int... I>
inline void swap_halves(Vec<T>* x, std::integer_sequence<int, I...>) {
  constexpr int n = Lanes<T>::n;
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    if (i & HALF) continue;
    const Vec<T> a = x[i], b = x[i + HALF];
    x[i] = __builtin_shuffle(a, b, Whole<T>{(I & HALF ? I - HALF + n : I)...});
    x[i + HALF] = __builtin_shuffle(a, b, Whole<T>{(I & HALF ? I + n : I + HALF)...});
  }
  if constexpr (HALF > 1) swap_halves<T, HALF / 2>(x, std::integer_sequence<int, I...>());
}

template <class T>
inline void transpose(Vec<T>* x) {
  swap_halves<T, Lanes<T>::n / 2>(x, std::make_integer_sequence<int, Lanes<T>::n>());
}

template <class T, int FLIP>
inline Vec<T> highest(Vec<T> x) {
  const Vec<T> y = flipped<T, FLIP>(x, std::make_integer_sequence<int, Lanes<T>::n>());
  x = x > y ? x : y;
  if constexpr (FLIP > 1) return highest<T, FLIP / 2>(x);
  else return x;
}

// The largest of the lanes.
template <class T>
inline T largest(Vec<T> x) {
  return highest<T, Lanes<T>::n / 2>(x)[0];
}

// 1 / (1 + e^-x)
template <class T>
inline Vec<T> sigmoid(Vec<T> x) {
  const Sigmoid<T> parts(x);
  return parts.numerator / parts.denominator;
}

template <class T>
inline Vec<T> tanh(Vec<T> x) {
  const Vec<T> e = exp_of_negative<T>(x < T(0) ? x + x : -x - x);
  return (x < T(0) ? e - T(1) : T(1) - e) / (T(1) + e);
}

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory that begins at a cache line, filled with zeros.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : memory_(size + 64 / sizeof(T)) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    data_ = reinterpret_cast<T*>((address + 63) / 64 * 64);
  }
  Buffer(Buffer&&) = default;  // a vector keeps its memory where it is
  Buffer& operator=(Buffer&&) = default;
  operator T*() const { return data_; }

 private:
  std::vector<T> memory_;
  T* data_;
};

// Calls f(job, begin, end) for all tokens of every job, those of one job in order or from the last one
// on, in parts of whole pieces. Threads get equal shares: where whole jobs do not divide evenly, one
// thread begins a job before its others and another thread ends it after its others (McNaughton's rule),
// so that the second seldom waits.
template <class F>
void share_out(int64_t jobs, int64_t tokens, bool parallel, F f, bool from_last = false) {
  const int64_t pieces = std::max<int64_t>(1, (tokens + PIECE - 1) / PIECE);
  std::vector<std::atomic<bool>> begun(jobs);
#pragma omp parallel if (parallel)
  {
    int64_t threads = 1, own = 0;
#ifdef _OPENMP
    threads = omp_get_num_threads(), own = omp_get_thread_num();
#endif
    auto bound = [&](int64_t thread) {  // pieces of all jobs before those of a thread
      return jobs < threads ? jobs * thread / threads * pieces : jobs * pieces * thread / threads;
    };
    const int64_t first = bound(own), last = bound(own + 1);
    for (int64_t job = first / pieces; job * pieces < last; ++job) {
      const int64_t before = std::max<int64_t>(first - job * pieces, 0);  // of another thread
      const int64_t after = std::max<int64_t>((job + 1) * pieces - last, 0);
      while (after && !begun[job].load(std::memory_order_acquire)) std::this_thread::yield();
      const int64_t from = from_last ? before : after, to = pieces - (from_last ? after : before);
      f(job, from * PIECE, std::min(to * PIECE, tokens));
      if (before) begun[job].store(true, std::memory_order_release);
    }
  }
}

// A tensor of up to four dimensions, the last contiguous unless it is counted by `stride`.
template <class T>
struct View {
  T* data;
  int64_t stride[4];
  explicit operator bool() const { return data != nullptr; }
  T* at(int64_t i, int64_t j = 0, int64_t k = 0) const {
    return data + i * stride[0] + j * stride[1] + k * stride[2];
  }
};

// Numbers and tensors, in the order in which `seqzoo.ops.native.call` wrote them.
class Arguments {
 public:
  explicit Arguments(const int64_t* values) : next_(values) {}
  int64_t number() { return *next_++; }
  double real() {
    double x;
    std::memcpy(&x, next_++, sizeof x);
    return x;
  }
  template <class T>
  View<T> tensor() {
    View<T> view;
    view.data = reinterpret_cast<T*>(*next_++);
    for (auto& stride : view.stride) stride = *next_++;
    return view;
  }

 private:
  const int64_t* next_;
};

// Asks for numbers that will be read, or written.
template <int WRITE = 0, class X>
inline void ask_for(X* row, int64_t count) {
  for (int64_t p = 0; p < count; p += 64 / sizeof(X)) __builtin_prefetch(row + p, WRITE);
}

// Rows of numbers in T, or in bfloat16 where T is float. Where rows follow each other along a
// dimension they lie too far apart for the processor to see it, so a row to come is asked for early.
template <class T>
struct Rows {
  View<T> wide{};
  View<BFloat16> half{};
  int64_t ahead = 0;  // numbers from a row to the one to ask for
  Rows() = default;
  Rows(Arguments& from, int along, int64_t rows_ahead = 8) {
    if (from.number()) half = from.tensor<BFloat16>();
    else wide = from.tensor<T>();
    ahead = rows_ahead * (half ? half.stride[along] : wide.stride[along]);
  }
  explicit operator bool() const { return wide || half; }
  void read(int64_t i, int64_t j, int64_t k, int64_t count, T* to) const {
    if constexpr (sizeof(T) == 4)
      if (half) {
        const BFloat16* from = half.at(i, j, k);
        ask_for(from + ahead, count);
        if (count % Lanes<T>::n) return read_some(from, count, to);
        for (int64_t p = 0; p < count; p += Lanes<T>::n) store(to + p, ::read(from + p, Lanes<T>::n));
        return;
      }
    ask_for(wide.at(i, j, k) + ahead, count);
    copy<T>(wide.at(i, j, k), count, to);
  }
  void write(const T* from, int64_t i, int64_t j, int64_t k, int64_t count, int64_t first = 0) const {
    if constexpr (sizeof(T) == 4)
      if (half) {
        BFloat16* to = half.at(i, j, k) + first;
        ask_for<1>(to + ahead, count);
        if (count % Lanes<T>::n) return write_some(from, count, to);
        for (int64_t p = 0; p < count; p += Lanes<T>::n) ::write(to + p, load(from + p), Lanes<T>::n);
        return;
      }
    ask_for<1>(wide.at(i, j, k) + first + ahead, count);
    copy<T>(from, count, wide.at(i, j, k) + first);
  }

 private:
  [[gnu::noinline]] static void read_some(const BFloat16* from, int64_t count, T* to) {
    for (int64_t p = 0; p < count; p += Lanes<T>::n) store(to + p, ::read(from + p, count - p));
  }
  [[gnu::noinline]] static void write_some(const T* from, int64_t count, BFloat16* to) {
    for (int64_t p = 0; p < count; p += Lanes<T>::n) ::write(to + p, load(from + p), count - p);
  }
};
