"""Configuration without Hydra or torch.

files       the YAML files: where they are, the values and comments in them
values      types of values, to annotate constructors with
schema      reads those annotations, from source or at a call, and refuses other values
rules, ...  what has to hold between several keys
plugins     what other installed packages add
requires    which plugins a run was made with, and whether they are here
moved       keys that have moved, and configurations of older runs
"""
