"""Speed, memory and state against sequence length, for any of the zoo on one axis.

plan        which points: (model, mode, length); torch-free
  | a process a point
measure     what one point costs: seconds, bytes, the kernels that ran
  | samples of every round
runner      rounds, budgets, what is left out
  | samples -> statistics: quartiles, noise, exponents
results     one object: bench.json; bench.csv, tables
  |
figures, board      bench.svg, bench.png, report.html; TensorBoard
"""
