// Recurrences of a matrix state whose tokens are given as they are: seqzoo/ops/matrix_state.py.
#include "matrix_state_groups.h"

namespace {

using matrix_state::Gradients;
using matrix_state::Token;

template <class T>
struct Plain : matrix_state::Family<T> {
  int64_t W;  // 1, or K decays
  Rows<T> q, k, v, log_w, a, b, y;
  Rows<T> of_y, of_q, of_k, of_v, of_log_w, of_a, of_b;

  void given(Arguments& from) {
    this->B = from.number(), this->H = from.number(), this->L = from.number();
    this->K = from.number(), this->V = from.number(), W = from.number();
    this->S = from.tensor<T>(), this->u = from.tensor<T>();
    for (auto* rows : {&q, &k, &v, &log_w, &a, &b}) *rows = Rows<T>(from, 2);
    this->delta = bool(a), this->bonus = bool(this->u);
  }
  void read(int64_t i, int64_t h, int64_t t, Token<T>& token) const override {
    constexpr int n = Lanes<T>::n;
    q.read(i, h, t, this->K, token.q);
    k.read(i, h, t, this->K, token.k);
    v.read(i, h, t, this->V, token.v);
    log_w.read(i, h, t, W, token.w);
    if (W == 1) {
      const Vec<T> w = exp_of_negative<T>(Vec<T>{} + token.w[0]);
      for (int64_t p = 0; p < this->K; p += n) store(token.w + p, w);
    } else {
      for (int64_t p = 0; p < this->K; p += n)
        store(token.w + p, exp_of_negative<T>(load(token.w + p, this->K - p)));
    }
    if (!this->delta) return;
    a.read(i, h, t, this->K, token.a);
    b.read(i, h, t, this->K, token.b);
  }
  void write(int64_t i, int64_t h, int64_t t, const Token<T>&, const T* from, int64_t first,
             int64_t columns) const override {
    y.write(from, i, h, t, columns, first);
  }
  void read_gradient(int64_t i, int64_t h, int64_t t, Token<T>&, T* to) const override {
    of_y.read(i, h, t, this->V, to);
  }
  void write_gradients(int64_t i, int64_t h, int64_t t, const Token<T>&,
                       const Gradients<T>& of) const override {
    of_q.write(of.q, i, h, t, this->K);
    of_k.write(of.k, i, h, t, this->K);
    of_v.write(of.v, i, h, t, this->V);
    if (this->decay) {
      if (W == 1)
        for (int64_t r = 1; r < this->K; ++r) of.log_w[0] += of.log_w[r];
      of_log_w.write(of.log_w, i, h, t, W);
    }
    if (!this->delta) return;
    of_a.write(of.a, i, h, t, this->K);
    of_b.write(of.b, i, h, t, this->K);
  }
};

template <class T>
void forward(Arguments from) {
  Plain<T> in;
  in.given(from);
  in.y = Rows<T>(from, 2);
  in.end = from.tensor<T>(), in.x = from.tensor<T>(), in.kept = from.tensor<T>();
  if (in.delta && in.bonus) matrix_state::forward<T, true, true>(in, false);
  else if (in.delta) matrix_state::forward<T, true, false>(in, false);
  else if (in.bonus) matrix_state::forward<T, false, true>(in, false);
  else matrix_state::grouped_forward<T>(in, false);
}

template <class T>
void backward(Arguments from) {
  Plain<T> in;
  in.given(from);
  in.of_y = Rows<T>(from, 2, -8);
  in.of_end = from.tensor<T>(), in.x = from.tensor<T>(), in.kept = from.tensor<T>();
  for (auto* rows : {&in.of_q, &in.of_k, &in.of_v, &in.of_log_w, &in.of_a, &in.of_b})
    *rows = Rows<T>(from, 2, -8);
  in.of_u = from.tensor<T>(), in.of_S = from.tensor<T>();
  in.decay = bool(in.of_log_w);
  if (in.delta && in.bonus) matrix_state::backward<T, true, true>(in);
  else if (in.delta) matrix_state::backward<T, true, false>(in);
  else if (in.bonus) matrix_state::backward<T, false, true>(in);
  else matrix_state::grouped_backward<T>(in);
}

}  // namespace

extern "C" {
void matrix_state_forward_float32(const int64_t* from) { forward<float>(Arguments(from)); }
void matrix_state_forward_float64(const int64_t* from) { forward<double>(Arguments(from)); }
void matrix_state_backward_float32(const int64_t* from) { backward<float>(Arguments(from)); }
void matrix_state_backward_float64(const int64_t* from) { backward<double>(Arguments(from)); }
}
