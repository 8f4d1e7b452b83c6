// The recurrences of DeltaNet and its gated kin from their convolved projections:
// seqzoo/ops/delta_net.py. Queries and keys are made from a token's projections beside it, and never
// kept.
#include <cmath>

#include "matrix_state.h"

namespace {

using matrix_state::Gradients;
using matrix_state::Token;

enum Row { QUERY, KEY, VALUE, UNIT, NUMBERS, ROWS };  // of Token::more; UNIT: the key of length 1
enum Number { BETA, OF_QUERY, OF_KEY };               // the rate, and 1 / length, twice

template <class T>
struct DeltaNet : matrix_state::Family<T> {
  static constexpr int n = Lanes<T>::n;
  static constexpr T SHORTEST = T(1e-24);  // squared length below which a vector is kept short
  int64_t padded, padded_value;
  int64_t W;  // decays of a head: 1, K, or none
  T scale;    // of queries
  T beta_max;
  Rows<T> qkv, beta, log_w, y, of_y, of_qkv, of_beta, of_log_w;

  void given(Arguments& from) {
    this->B = from.number(), this->H = from.number(), this->L = from.number();
    this->K = from.number(), this->V = from.number(), W = from.number();
    beta_max = from.real();
    this->S = from.tensor<T>();
    qkv = Rows<T>(from, 1), beta = Rows<T>(from, 1), log_w = Rows<T>(from, 1);
    this->more = ROWS, this->decay = W > 0;
    padded = round_up(this->K, n), padded_value = round_up(this->V, n);
    scale = 1 / std::sqrt(T(this->K));
  }
  int64_t size(int64_t part) const { return part == 2 ? this->V : this->K; }
  int64_t place(int64_t part, int64_t h) const { return part * this->H * this->K + h * size(part); }

  void read(int64_t i, int64_t h, int64_t t, Token<T>& token) const override {
    T *to[] = {token.q, token.more(UNIT), token.v}, *numbers = token.more(NUMBERS);
    beta.read(i, t, h, 1, numbers + BETA);  // a whole vector is written, so first
    for (int64_t part = 0; part < 3; ++part) {
      T* raw = token.more(QUERY + part);
      qkv.read(i, t, place(part, h), size(part), raw);
      Vec<T> squares = {};
      for (int64_t p = 0; p < (part == 2 ? padded_value : padded); p += n) {
        const Vec<T> x = load(raw + p), y = x * sigmoid<T>(x);
        store(to[part] + p, y);
        squares += y * y;
      }
      if (part == 2) break;
      const T total = sum<T>(squares);
      // 0 marks a vector that is kept short
      numbers[OF_QUERY + part] = total < SHORTEST ? T(0) : 1 / std::sqrt(total);
      const T inverse = 1 / std::sqrt(std::max(total, SHORTEST)) * (part ? T(1) : scale);
      for (int64_t p = 0; p < padded; p += n) store(to[part] + p, load(to[part] + p) * inverse);
    }
    numbers[BETA] = beta_max * sigmoid<T>(Vec<T>{} + numbers[BETA])[0];
    if (W) log_w.read(i, t, h * W, W, token.w);
    const Vec<T> of_head = W == 1 ? exp_of_negative<T>(Vec<T>{} + token.w[0]) : Vec<T>{} + T(1);
    for (int64_t p = 0; p < padded; p += n) {
      const Vec<T> key = load(token.more(UNIT) + p), written = numbers[BETA] * key;
      store(token.k + p, written), store(token.a + p, Vec<T>(-written));
      const Vec<T> w = W > 1 ? exp_of_negative<T>(load(token.w + p, this->K - p)) : of_head;
      store(token.w + p, w), store(token.b + p, Vec<T>(w * key));
    }
  }
  void write(int64_t i, int64_t h, int64_t t, const Token<T>&, const T* from, int64_t,
             int64_t) const override {
    y.write(from, i, h, t, this->V);
  }
  void read_gradient(int64_t i, int64_t h, int64_t t, Token<T>&, T* to) const override {
    of_y.read(i, h, t, this->V, to);
  }
  // The gradient of silu(raw) over its length, given that of the result: `unit`, times `by`.
  void back(const T* raw, const T* unit, T by, T inverse, T* of) const {
    Vec<T> along = {};
    for (int64_t p = 0; p < padded; p += n) along += load(of + p) * load(unit + p);
    const T slope = inverse ? sum<T>(along) / by : T(0);
    const T length = (inverse ? inverse : 1 / std::sqrt(SHORTEST));
    for (int64_t p = 0; p < padded; p += n) {
      const Vec<T> x = load(raw + p), s = sigmoid<T>(x);
      const Vec<T> d = (load(of + p) * by - slope * load(unit + p)) * length;
      store(of + p, Vec<T>(d * s * (T(1) + x * (T(1) - s))));
    }
  }
  void write_gradients(int64_t i, int64_t h, int64_t t, const Token<T>& token,
                       const Gradients<T>& of) const override {
    const T* numbers = token.more(NUMBERS);
    Vec<T> total = {}, of_head = {};
    for (int64_t p = 0; p < padded; p += n) {
      const Vec<T> written = load(of.k + p) - load(of.a + p), of_b = load(of.b + p);
      total += written * load(token.more(UNIT) + p);
      store(of.k + p, Vec<T>(numbers[BETA] * written + load(token.w + p) * of_b));
      if (!W) continue;
      const Vec<T> of_w = load(of.log_w + p) + load(token.b + p) * of_b;
      store(of.log_w + p, of_w);
      of_head += of_w;
    }
    of.a[0] = sum<T>(total) * numbers[BETA] * (1 - numbers[BETA] / beta_max);
    of_beta.write(of.a, i, t, h, 1);
    if (W == 1) of.log_w[0] = sum<T>(of_head);
    if (W) of_log_w.write(of.log_w, i, t, h * W, W);
    back(token.more(QUERY), token.q, scale, numbers[OF_QUERY], of.q);
    back(token.more(KEY), token.more(UNIT), T(1), numbers[OF_KEY], of.k);
    for (int64_t p = 0; p < padded_value; p += n) {
      const Vec<T> x = load(token.more(VALUE) + p), s = sigmoid<T>(x);
      store(of.v + p, Vec<T>(load(of.v + p) * s * (T(1) + x * (T(1) - s))));
    }
    of_qkv.write(of.q, i, t, place(0, h), this->K);
    of_qkv.write(of.k, i, t, place(1, h), this->K);
    of_qkv.write(of.v, i, t, place(2, h), this->V);
  }
};

template <class T>
void forward(Arguments from) {
  DeltaNet<T> in;
  in.given(from);
  in.y = Rows<T>(from, 2);
  in.end = from.tensor<T>(), in.x = from.tensor<T>(), in.kept = from.tensor<T>();
  matrix_state::forward<T, true, false>(in, true);
}

template <class T>
void backward(Arguments from) {
  DeltaNet<T> in;
  in.given(from);
  in.of_y = Rows<T>(from, 2, -8);
  in.of_end = from.tensor<T>(), in.x = from.tensor<T>(), in.kept = from.tensor<T>();
  for (auto* rows : {&in.of_qkv, &in.of_beta, &in.of_log_w}) *rows = Rows<T>(from, 1, -8);
  in.of_S = from.tensor<T>();
  matrix_state::backward<T, true, false>(in);
}

}  // namespace

extern "C" {
void delta_net_forward_float32(const int64_t* from) { forward<float>(Arguments(from)); }
void delta_net_forward_float64(const int64_t* from) { forward<double>(Arguments(from)); }
void delta_net_backward_float32(const int64_t* from) { backward<float>(Arguments(from)); }
void delta_net_backward_float64(const int64_t* from) { backward<double>(Arguments(from)); }
}
