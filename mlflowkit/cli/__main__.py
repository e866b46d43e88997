"""``python -m mlflowkit.cli``: the same as ``mlkit``, for processes that start it by the module's name."""

from mlflowkit.cli import main

if __name__ == "__main__":
    main()
