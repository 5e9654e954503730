"""`python -m capfilt`, for torchrun: `torchrun --nproc-per-node 8 -m capfilt train ...`."""

from capfilt.cli import main

if __name__ == "__main__":
    main()
