"""An examination: several families, several abilities, at equal parameters and equal effort.

plan -> cells, each a training run in a process of its own -> results -> words, figures, page
"""
