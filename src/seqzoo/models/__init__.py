"""From mixers to models: blocks, the language model, and the table of names. Importing this loads
no torch."""
