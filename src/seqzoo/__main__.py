"""``python -m seqzoo``."""

from seqzoo.cli.main import main

if __name__ == "__main__":
    main()
