// Time mixing of RWKV-7 from its projections to its gated output: seqzoo/ops/rwkv7.py. What the
// recurrence reads is made from a token's projections beside it, and never kept.
#include <cmath>

#include "matrix_state.h"

namespace {

using matrix_state::Gradients;
using matrix_state::Token;

enum Parameter { W0, A0, K_K, K_A, R_K, SCALE, SHIFT, V0, PARAMETERS };
enum Row { KEY, RATE, SPEED, KAPPA, SHARE, STEP, GATE, NORMAL, OF_V, ROWS };  // of Token::more
enum Number { SQUARES, LENGTH, BONUS, OF_BONUS };  // of the row after them

template <class T>
struct RWKV7 : matrix_state::Family<T> {
  static constexpr int n = Lanes<T>::n;
  static constexpr T SHORTEST = T(1e-24);  // squared length of kappa below which it is kept short
  T eps, fastest, more_rate;  // of the norm; the largest -log w; beta_max - 1
  int64_t padded;
  View<T> weights, of_weights;
  Rows<T> r, w, k, v, a, gate, share, v_first, out, y;  // y: of the recurrence, if it is kept
  Rows<T> of_r, of_w, of_k, of_v, of_a, of_gate, of_share, of_v_first, of_out;
  std::vector<Buffer<T>> own;  // the weights of each head, with zeros up to whole vectors
  Buffer<T> inside{0};         // 1 for each number of a head, then 0

  void given(Arguments& from) {
    this->B = from.number(), this->H = from.number(), this->L = from.number();
    this->K = this->V = from.number();
    eps = from.real(), fastest = from.real(), more_rate = from.real();
    this->S = from.tensor<T>(), weights = from.tensor<T>();
    for (auto* rows : {&r, &w, &k, &v, &a, &gate, &share, &v_first}) *rows = Rows<T>(from, 1);
    this->more = ROWS + 1;
    this->decay = true;
    padded = round_up(this->K, n);
    inside = Buffer<T>(padded);
    std::fill_n(static_cast<T*>(inside), this->K, T(1));
    for (int64_t h = 0; h < this->H; ++h) {
      own.emplace_back(PARAMETERS * padded);
      for (int64_t p = 0; p < (share ? PARAMETERS : V0); ++p)
        copy<T>(weights.at(p) + h * this->K, this->K, own[h] + p * padded);
    }
  }
  const T* weight(int64_t h, int64_t parameter) const {
    return own[h] + parameter * padded;
  }
  // The numbers of a token that belong to a head.
  void row(const Rows<T>& from, int64_t i, int64_t h, int64_t t, T* to) const {
    from.read(i, t, h * this->K, this->K, to);
  }
  void row(const T* from, const Rows<T>& to, int64_t i, int64_t h, int64_t t) const {
    to.write(from, i, t, h * this->K, this->K);
  }

  void read(int64_t i, int64_t h, int64_t t, Token<T>& token) const override {
    T* numbers = token.more(ROWS);
    row(r, i, h, t, token.q);
    row(k, i, h, t, token.more(KEY));
    row(a, i, h, t, token.more(RATE));
    row(w, i, h, t, token.more(SPEED));
    row(v, i, h, t, token.v);
    Vec<T> squares = {};
    for (int64_t p = 0; p < padded; p += n) {
      const Vec<T> kappa = load(token.more(KEY) + p) * load(weight(h, K_K) + p);
      store(token.more(KAPPA) + p, kappa);
      squares += kappa * kappa;
    }
    numbers[SQUARES] = sum<T>(squares);
    numbers[LENGTH] = 1 / std::sqrt(std::max(numbers[SQUARES], SHORTEST));
    Vec<T> bonus = {};
    for (int64_t p = 0; p < padded; p += n) {
      const Vec<T> rate = sigmoid<T>(load(token.more(RATE) + p) + load(weight(h, A0) + p));
      const Vec<T> speed = sigmoid<T>(load(token.more(SPEED) + p) + load(weight(h, W0) + p));
      const Vec<T> kappa = load(token.more(KAPPA) + p) * numbers[LENGTH];
      const Vec<T> key = load(token.more(KEY) + p) * (T(1) + (rate - T(1)) * load(weight(h, K_A) + p));
      bonus += load(token.q + p) * load(weight(h, R_K) + p) * key;
      store(token.more(RATE) + p, rate), store(token.more(SPEED) + p, speed);
      store(token.more(KAPPA) + p, kappa);
      const Vec<T> w = exp_of_negative<T>(-fastest * speed);
      store(token.w + p, w), store(token.k + p, key);
      store(token.a + p, Vec<T>(rate * (T(1) + more_rate * w) * kappa)), store(token.b + p, Vec<T>(-kappa));
    }
    numbers[BONUS] = sum<T>(bonus);
    if (!share) return;
    row(share, i, h, t, token.more(SHARE));
    row(v_first, i, h, t, token.more(STEP));
    for (int64_t p = 0; p < padded; p += n) {
      const Vec<T> m = sigmoid<T>(load(token.more(SHARE) + p) + load(weight(h, V0) + p));
      const Vec<T> own = load(token.v + p), more = load(token.more(STEP) + p) - own;
      store(token.v + p, Vec<T>(own + m * more));
      store(token.more(SHARE) + p, m), store(token.more(STEP) + p, more);
    }
  }

  // y without its mean, over its standard deviation; its inverse.
  T normalise(const T* y, T* to) const {
    Vec<T> total = {}, squares = {};
    for (int64_t p = 0; p < padded; p += n) total += load(y + p, this->V - p);
    const T mean = sum<T>(total) / this->V;
    for (int64_t p = 0; p < padded; p += n) {
      const Vec<T> d = (load(y + p, this->V - p) - mean) * load(inside + p);
      store(to + p, d);
      squares += d * d;
    }
    const T inverse = 1 / std::sqrt(sum<T>(squares) / this->V + eps);
    for (int64_t p = 0; p < padded; p += n) store(to + p, load(to + p) * inverse);
    return inverse;
  }

  // Before the gate.
  Vec<T> open(int64_t h, const Token<T>& token, int64_t p) const {
    return load(token.more(NORMAL) + p) * load(weight(h, SCALE) + p) + load(weight(h, SHIFT) + p) +
           token.more(ROWS)[BONUS] * load(token.v + p);
  }

  void write(int64_t i, int64_t h, int64_t t, const Token<T>& token, const T* from, int64_t,
             int64_t) const override {
    if (y) y.write(from, i, h, t, this->V);
    normalise(from, token.more(NORMAL));
    row(gate, i, h, t, token.more(GATE));
    for (int64_t p = 0; p < padded; p += n)
      store(token.more(GATE) + p, Vec<T>(open(h, token, p) * load(token.more(GATE) + p)));
    row(token.more(GATE), out, i, h, t);
  }

  void add(int64_t i, int64_t h, int64_t parameter, int64_t p, Vec<T> x) const {
    T* to = of_weights.at(i, parameter) + h * this->K + p;
    store(to, load(to, this->K - p) + x, this->K - p);
  }

  void read_gradient(int64_t i, int64_t h, int64_t t, Token<T>& token, T* of_y) const override {
    T* numbers = token.more(ROWS);
    y.read(i, h, t, this->V, token.more(NORMAL));
    const T spread = normalise(token.more(NORMAL), token.more(NORMAL));
    row(gate, i, h, t, token.more(GATE));
    row(of_out, i, h, t, of_y);
    Vec<T> of_bonus = {}, total = {}, along = {};
    for (int64_t p = 0; p < padded; p += n) {
      const Vec<T> given = load(of_y + p), normal = load(token.more(NORMAL) + p);
      const Vec<T> d = given * load(token.more(GATE) + p), of_normal = d * load(weight(h, SCALE) + p);
      store(token.more(GATE) + p, Vec<T>(given * open(h, token, p)));  // the gradient of the gate
      add(i, h, SCALE, p, d * normal), add(i, h, SHIFT, p, d);
      store(token.more(OF_V) + p, Vec<T>(d * numbers[BONUS]));
      of_bonus += d * load(token.v + p);
      total += of_normal;
      along += of_normal * normal;
      store(of_y + p, of_normal);
    }
    row(token.more(GATE), of_gate, i, h, t);
    numbers[OF_BONUS] = sum<T>(of_bonus);
    const T mean = sum<T>(total) / this->V, slope = sum<T>(along) / this->V;
    for (int64_t p = 0; p < padded; p += n)
      store(of_y + p, Vec<T>((load(of_y + p) - mean - slope * load(token.more(NORMAL) + p)) * spread));
  }

  void write_gradients(int64_t i, int64_t h, int64_t t, const Token<T>& token,
                       const Gradients<T>& of) const override {
    const T *numbers = token.more(ROWS), of_bonus = numbers[OF_BONUS], length = numbers[LENGTH];
    Vec<T> along = {};
    for (int64_t p = 0; p < padded; p += n) {
      const Vec<T> rate = load(token.more(RATE) + p), speed = load(token.more(SPEED) + p);
      const Vec<T> kappa = load(token.more(KAPPA) + p), raw = load(token.more(KEY) + p);
      const Vec<T> q = load(token.q + p), key = load(token.k + p), w = load(token.w + p);
      const Vec<T> of_rates = load(of.a + p), of_a = of_rates * (T(1) + more_rate * w);
      const Vec<T> r_k = load(weight(h, R_K) + p), k_a = load(weight(h, K_A) + p);
      add(i, h, R_K, p, of_bonus * q * key);
      store(of.q + p, Vec<T>(load(of.q + p) + of_bonus * r_k * key));
      const Vec<T> of_key = load(of.k + p) + of_bonus * r_k * q;
      const Vec<T> of_kappa = rate * of_a - load(of.b + p);
      along += of_kappa * kappa;
      store(of.b + p, of_kappa);
      store(of.k + p, Vec<T>(of_key * (T(1) + (rate - T(1)) * k_a)));
      add(i, h, K_A, p, of_key * raw * (rate - T(1)));
      const Vec<T> to_rate = (kappa * of_a + of_key * raw * k_a) * rate * (T(1) - rate);
      store(of.a + p, to_rate);
      add(i, h, A0, p, to_rate);
      const Vec<T> of_log_w = load(of.log_w + p) + of_rates * rate * kappa * more_rate * w;
      const Vec<T> to_speed = -fastest * of_log_w * speed * (T(1) - speed);
      store(of.log_w + p, to_speed);
      add(i, h, W0, p, to_speed);
    }
    const T slope = numbers[SQUARES] < SHORTEST ? T(0) : sum<T>(along);
    for (int64_t p = 0; p < padded; p += n) {
      const Vec<T> to = (load(of.b + p) - slope * load(token.more(KAPPA) + p)) * length;
      add(i, h, K_K, p, to * load(token.more(KEY) + p));
      store(of.k + p, Vec<T>(load(of.k + p) + to * load(weight(h, K_K) + p)));
      Vec<T> of_v = load(of.v + p) * load(inside + p) + load(token.more(OF_V) + p);
      if (share) {
        const Vec<T> m = load(token.more(SHARE) + p);
        const Vec<T> to_share = of_v * load(token.more(STEP) + p) * m * (T(1) - m);
        store(token.more(SHARE) + p, to_share);
        add(i, h, V0, p, to_share);
        store(token.more(STEP) + p, Vec<T>(of_v * m));
        of_v -= of_v * m;
      }
      store(of.v + p, of_v);
    }
    row(of.q, of_r, i, h, t);
    row(of.log_w, of_w, i, h, t);
    row(of.k, of_k, i, h, t);
    row(of.v, of_v, i, h, t);
    row(of.a, of_a, i, h, t);
    if (!share) return;
    row(token.more(SHARE), of_share, i, h, t);
    row(token.more(STEP), of_v_first, i, h, t);
  }
};

template <class T>
void forward(Arguments from) {
  RWKV7<T> in;
  in.given(from);
  in.out = Rows<T>(from, 1);
  in.end = from.tensor<T>(), in.y = Rows<T>(from, 2);
  in.x = from.tensor<T>(), in.kept = from.tensor<T>();
  matrix_state::forward<T, true, false>(in, true);
}

template <class T>
void backward(Arguments from) {
  RWKV7<T> in;
  in.given(from);
  in.of_out = Rows<T>(from, 1, -8);
  in.of_end = from.tensor<T>(), in.y = Rows<T>(from, 2, -8);
  in.x = from.tensor<T>(), in.kept = from.tensor<T>();
  for (auto* rows : {&in.of_r, &in.of_w, &in.of_k, &in.of_v, &in.of_a, &in.of_gate, &in.of_share, &in.of_v_first})
    *rows = Rows<T>(from, 1, -8);
  in.gate.ahead = -in.gate.ahead;  // read from the last token on
  in.of_weights = from.tensor<T>(), in.of_S = from.tensor<T>();
  matrix_state::backward<T, true, false>(in);
}

}  // namespace

extern "C" {
void rwkv7_forward_float32(const int64_t* from) { forward<float>(Arguments(from)); }
void rwkv7_forward_float64(const int64_t* from) { forward<double>(Arguments(from)); }
void rwkv7_backward_float32(const int64_t* from) { backward<float>(Arguments(from)); }
void rwkv7_backward_float64(const int64_t* from) { backward<double>(Arguments(from)); }
}
