"""Analyses of trained models.

compare     several runs in one table and figure, and two benches
inspect     one model: its gradients, weights, losses and embeddings
"""
