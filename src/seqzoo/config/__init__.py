"""Configuration without Hydra or torch.

files         the YAML files: where they are, the values and comments in them
values        types of values and their ranges, and the refusal of a value that is none of them
schema        reads the annotations of constructors, and has them checked
combinations  what has to hold between several keys
plugins       what other installed packages add
requires      which plugins a run was made with, and whether they are here
moved         keys that have moved, and configurations of older runs
"""
