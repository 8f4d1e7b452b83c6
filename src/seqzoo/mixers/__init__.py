"""One file a family. A mixer maps ``(x, state)`` to ``(y, state)``, x and y (B, T, D), for any T >=
1.

Time mixers carry information along T in their state; a channel mixer, such as the MLP, has the
state ``()``. Mixers know nothing of each other, of blocks or of tasks.
"""
