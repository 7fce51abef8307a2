"""``python -m recipes.place.group``: be the group whose ``GroupSpec`` standard input holds."""

import sys

from recipes.place.group.local import be_group

if __name__ == "__main__":
    be_group(sys.stdin.read())
