// Linear attention from a token's projections: seqzoo/ops/linear_attention.py. Features are made
// from them beside the recurrence and never kept; the normaliser is one more column of the state.
#include "matrix_state_groups.h"

namespace {

using matrix_state::Gradients;
using matrix_state::Token;

template <class T>
struct LinearAttention : matrix_state::Family<T> {
  static constexpr int n = Lanes<T>::n;
  T eps;
  Rows<T> qkv, out, of_out, of_qkv;
  View<T> log_w, total;  // of each head; what a token's output is divided by

  void given(Arguments& from) {
    this->B = from.number(), this->H = from.number(), this->L = from.number();
    this->K = from.number(), this->V = this->K + 1;
    eps = from.real();
    this->S = from.tensor<T>(), log_w = from.tensor<T>();
    qkv = Rows<T>(from, 1), out = Rows<T>(from, 1);
    total = from.tensor<T>();
    this->more = 1, this->delta = this->bonus = this->decay = false;
  }
  int64_t place(int64_t part, int64_t h) const { return (part * this->H + h) * this->K; }

  void read(int64_t i, int64_t h, int64_t t, Token<T>& token) const override {
    const int64_t K = this->K;
    const Vec<T> w = exp_of_negative<T>(Vec<T>{} + *log_w.at(h));
    qkv.read(i, t, place(0, h), K, token.q);
    qkv.read(i, t, place(1, h), K, token.k);
    qkv.read(i, t, place(2, h), K, token.v);
    token.v[K] = 1;
    for (int64_t p = 0; p < K; p += n) {
      store(token.w + p, w);
      for (T* x : {token.q, token.k}) store(x + p, feature(load(x + p)), K - p);
    }
  }
  // elu + 1
  static Vec<T> feature(Vec<T> x) {
    const Vec<T> small = exp_of_negative<T>(x < 0 ? x : Vec<T>{});
    return x < 0 ? small : Vec<T>(x + T(1));
  }
  // Its derivative, given the feature.
  static Vec<T> slope(Vec<T> y) { return y < 1 ? y : Vec<T>{} + T(1); }

  void write(int64_t i, int64_t h, int64_t t, const Token<T>& token, const T* y, int64_t,
             int64_t) const override {
    const T sum = y[this->K] + eps, inverse = 1 / sum;
    for (int64_t p = 0; p < this->K; p += n) store(token.more(0) + p, Vec<T>(load(y + p) * inverse));
    out.write(token.more(0), i, t, place(0, h), this->K);
    if (total) *total.at(i, h, t) = sum;
  }
  void read_gradient(int64_t i, int64_t h, int64_t t, Token<T>& token, T* of_y) const override {
    const T inverse = 1 / *total.at(i, h, t);
    out.read(i, t, place(0, h), this->K, token.more(0));
    of_out.read(i, t, place(0, h), this->K, of_y);
    Vec<T> along = {};
    for (int64_t p = 0; p < this->K; p += n) {
      const Vec<T> d = load(of_y + p) * inverse;
      store(of_y + p, d);
      along += d * load(token.more(0) + p);
    }
    of_y[this->K] = -sum<T>(along);
  }
  void write_gradients(int64_t i, int64_t h, int64_t t, const Token<T>& token,
                       const Gradients<T>& of) const override {
    for (int64_t p = 0; p < this->K; p += n) {
      store(of.q + p, Vec<T>(load(of.q + p) * slope(load(token.q + p))));
      store(of.k + p, Vec<T>(load(of.k + p) * slope(load(token.k + p))));
    }
    of_qkv.write(of.q, i, t, place(0, h), this->K);
    of_qkv.write(of.k, i, t, place(1, h), this->K);
    of_qkv.write(of.v, i, t, place(2, h), this->K);
  }
};

template <class T>
void forward(Arguments from) {
  LinearAttention<T> in;
  in.given(from);
  in.end = from.tensor<T>(), in.kept = from.tensor<T>();
  matrix_state::grouped_forward<T>(in, true);
}

template <class T>
void backward(Arguments from) {
  LinearAttention<T> in;
  in.given(from);
  in.of_out = Rows<T>(from, 1, -8);
  in.of_end = from.tensor<T>(), in.kept = from.tensor<T>();
  in.of_qkv = Rows<T>(from, 1, -8);
  in.of_S = from.tensor<T>();
  in.out.ahead = -in.out.ahead;  // read from the last token on
  matrix_state::grouped_backward<T>(in);
}

}  // namespace

extern "C" {
void linear_attention_forward_float32(const int64_t* from) { forward<float>(Arguments(from)); }
void linear_attention_forward_float64(const int64_t* from) { forward<double>(Arguments(from)); }
void linear_attention_backward_float32(const int64_t* from) { backward<float>(Arguments(from)); }
void linear_attention_backward_float64(const int64_t* from) { backward<double>(Arguments(from)); }
}
