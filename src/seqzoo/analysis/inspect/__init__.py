"""One trained language model, measured from inside.

measure     all measurements of a run
contexts    how the vectors of a word differ between its contexts, layer by layer
figures, write      what is left in the run's directory

Every family is measured in the same way: gradients are taken at the embedding, vectors are read by
forward hooks, and an operation that is linear in its values gives its weights.
"""
