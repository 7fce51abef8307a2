"""``python -m recipes.serve.parallel``: be the rank whose ``RankSpec`` standard input holds."""

import sys

from recipes.serve.parallel.rank import be_rank

if __name__ == "__main__":
    be_rank(sys.stdin.read())
