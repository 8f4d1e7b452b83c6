// The matrix memory of mLSTM: seqzoo/ops/mlstm.py. Queries, keys and values are made from tokens
// beside the recurrence and never kept; the normaliser is one more column of the state.
#include "matrix_state.h"

namespace {

using matrix_state::Gradients;
using matrix_state::Token;

constexpr int BLOCK = 4;  // side of the blocks of the matrices

// In every lane number i of the block that the lane is in.
template <class T, int... I>
inline Vec<T> spread(Vec<T> x, int i, std::integer_sequence<int, I...>) {
  constexpr auto in_block = [](int lane) { return lane / BLOCK * BLOCK; };
  if (i == 0) return __builtin_shuffle(x, Whole<T>{in_block(I)...});
  if (i == 1) return __builtin_shuffle(x, Whole<T>{(in_block(I) + 1)...});
  if (i == 2) return __builtin_shuffle(x, Whole<T>{(in_block(I) + 2)...});
  return __builtin_shuffle(x, Whole<T>{(in_block(I) + 3)...});
}

template <class T>
inline Vec<T> spread(Vec<T> x, int i) {
  return spread<T>(x, i, std::make_integer_sequence<int, Lanes<T>::n>());
}

enum { QUERIES, KEYS, VALUES };
enum { MIXED, X, OUT, SCALED };  // rows of a token

template <class T>
struct MLSTM : matrix_state::Family<T> {
  static constexpr int n = Lanes<T>::n;
  T least;
  Rows<T> mixed, x;
  // W (3, 4, E): W_i holds the weight of input i of the block in each output, back_o that of output
  // o in each input. gates: log i - m, log f and m of a token, (3, B, H, L).
  View<T> W, back, gates[3], y, sums;  // sums: q . n
  View<T> of_y, of_mixed, of_x, of_gates[2], of_W;

  void given(Arguments& from) {
    this->B = from.number(), this->H = from.number(), this->L = from.number();
    this->K = from.number(), this->V = this->K + 1;
    least = from.real();
    this->S = from.tensor<T>();
    mixed = Rows<T>(from, 1), x = Rows<T>(from, 1);
    W = from.tensor<T>(), back = from.tensor<T>();
    for (auto& gate : gates) gate = from.tensor<T>();
    y = from.tensor<T>(), sums = from.tensor<T>();
    this->end = from.tensor<T>(), this->kept = from.tensor<T>();
    this->more = 4, this->delta = this->bonus = false, this->decay = true;
  }
  T divisor(int64_t i, int64_t h, int64_t t) const {
    const Vec<T> m = Vec<T>{} - *gates[2].at(i, h, t);
    const T bound = m[0] > 0 ? 1 / exp_of_negative<T>(-m)[0] : exp_of_negative<T>(m)[0];
    return std::max(bound, least);
  }
  // The rows of a token's block matrix times `from`: numbers of a vector from p.
  Vec<T> product(View<T> weights, int part, int64_t h, int64_t p, Vec<T> from) const {
    Vec<T> to = {};
    for (int i = 0; i < BLOCK; ++i)
      to += load(weights.at(part, i) + h * this->K + p, this->K - p) * spread<T>(from, i);
    return to;
  }

  void read(int64_t i, int64_t h, int64_t t, Token<T>& token) const override {
    const int64_t K = this->K;
    mixed.read(i, t, h * K, K, token.more(MIXED));
    x.read(i, t, h * K, K, token.more(X));
    const Vec<T> in = exp_of_negative<T>(Vec<T>{} + *gates[0].at(i, h, t));
    const Vec<T> keep = exp_of_negative<T>(Vec<T>{} + *gates[1].at(i, h, t));
    for (int64_t p = 0; p < K; p += n) {
      const Vec<T> from = load(token.more(MIXED) + p), of_values = load(token.more(X) + p);
      store(token.q + p, product(W, QUERIES, h, p, from));
      store(token.k + p, Vec<T>(in * product(W, KEYS, h, p, from)));
      store(token.v + p, product(W, VALUES, h, p, of_values));
      store(token.w + p, keep);
    }
    token.v[K] = 1;
  }
  void write(int64_t i, int64_t h, int64_t t, const Token<T>& token, const T* from, int64_t,
             int64_t) const override {
    const T sum = from[this->K], inverse = 1 / std::max(std::abs(sum), divisor(i, h, t));
    for (int64_t p = 0; p < this->K; p += n)
      store(y.at(i, h, t) + p, Vec<T>(load(from + p) * inverse), this->K - p);
    if (sums) *sums.at(i, h, t) = sum;
  }
  void read_gradient(int64_t i, int64_t h, int64_t t, Token<T>& token, T* of) const override {
    const T sum = *sums.at(i, h, t), bound = divisor(i, h, t);
    const T inverse = 1 / std::max(std::abs(sum), bound);
    Vec<T> along = {};
    for (int64_t p = 0; p < this->K; p += n) {
      const Vec<T> d = load(of_y.at(i, h, t) + p, this->K - p) * inverse;
      along += d * load(y.at(i, h, t) + p, this->K - p);
      store(of + p, d);
    }
    const T of_size = -::sum<T>(along);
    of[this->K] = std::abs(sum) <= bound ? 0 : sum < 0 ? -of_size : of_size;
  }
  void write_gradients(int64_t i, int64_t h, int64_t t, const Token<T>& token,
                       const Gradients<T>& of) const override {
    const int64_t K = this->K;
    const Vec<T> in = exp_of_negative<T>(Vec<T>{} + *gates[0].at(i, h, t));
    Vec<T> of_in = {}, of_keep = {};
    of.v[K] = 0;
    for (int64_t p = 0; p < K; p += n) {
      const int64_t count = K - p;
      const Vec<T> dk = load(of.k + p, count), dq = load(of.q + p, count), dv = load(of.v + p, count);
      of_in += dk * load(token.k + p, count), of_keep += load(of.log_w + p, count);
      const Vec<T> parts[3] = {dq, dk * in, dv};
      const Vec<T> from = load(token.more(MIXED) + p), of_values = load(token.more(X) + p);
      store(of_mixed.at(i, t) + h * K + p,
            Vec<T>(product(back, QUERIES, h, p, dq) + product(back, KEYS, h, p, parts[1])), count);
      store(of_x.at(i, t) + h * K + p, product(back, VALUES, h, p, dv), count);
      for (int part = 0; part < 3; ++part)
        for (int b = 0; b < BLOCK; ++b) {
          T* to = of_W.at(i, part, b) + h * K + p;
          const Vec<T> more = parts[part] * spread<T>(part == VALUES ? of_values : from, b);
          store(to, Vec<T>(load(to, count) + more), count);
        }
    }
    *of_gates[0].at(i, h, t) = ::sum<T>(of_in);
    *of_gates[1].at(i, h, t) = ::sum<T>(of_keep);
  }
};

template <class T>
void forward(Arguments from) {
  MLSTM<T> in;
  in.given(from);
  matrix_state::forward<T, false, false>(in, true);
}

template <class T>
void backward(Arguments from) {
  MLSTM<T> in;
  in.given(from);
  in.of_y = from.tensor<T>(), in.of_end = from.tensor<T>();
  in.of_mixed = from.tensor<T>(), in.of_x = from.tensor<T>();
  for (auto& gate : in.of_gates) gate = from.tensor<T>();
  in.of_W = from.tensor<T>(), in.of_S = from.tensor<T>();
  in.mixed.ahead = -in.mixed.ahead, in.x.ahead = -in.x.ahead;  // read from the last token on
  matrix_state::backward<T, false, false>(in);
}

}  // namespace

extern "C" {
void mlstm_forward_float32(const int64_t* from) { forward<float>(Arguments(from)); }
void mlstm_forward_float64(const int64_t* from) { forward<double>(Arguments(from)); }
void mlstm_backward_float32(const int64_t* from) { backward<float>(Arguments(from)); }
void mlstm_backward_float64(const int64_t* from) { backward<double>(Arguments(from)); }
}
