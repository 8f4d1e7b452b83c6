"""Checkpoints of others in, ours out.

rwkv    official RWKV files of versions 4 to 7, in and out
hf      folders for `transformers`, out
"""
