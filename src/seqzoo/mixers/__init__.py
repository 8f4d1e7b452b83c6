"""One file for each family. A mixer maps ``(x, state)`` to ``(y, state)``, x and y (B, T, D), for
any T >= 1.

Time mixers carry information along T in their state; a channel mixer without memory, such as the
MLP, has the state ``()``. Mixers import neither each other nor blocks or tasks; `delta.py` has what
those of the delta rule share.
"""
