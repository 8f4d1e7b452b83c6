"""Checkpoints of other software.

rwkv_names      parameter names and configuration of official RWKV files, versions 4 to 7
rwkv            such files imported and exported
world           the vocabulary of the RWKV World models
hf              folders for `transformers`, exported
"""
