"""Speed, memory and state against sequence length, for any models on one axis.

plan        the settings, and which points are measured: (model, mode, length)
measure     what one point costs, timed; memory: bytes that are held
runner      rounds over all points, each point in a process of its own
results     from times to rows: quartiles and noise, exponents and crossovers
figures, write      what a bench leaves on disk

`plan` loads no torch, so that a wrong request is refused at once.
"""
