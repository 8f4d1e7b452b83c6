"""Data without torch: texts, pairs, labelled texts; their tokenizers and the cache."""
