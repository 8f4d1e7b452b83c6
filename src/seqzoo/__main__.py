"""``python -m seqzoo``."""

from seqzoo.cli import main

if __name__ == "__main__":
    main()
