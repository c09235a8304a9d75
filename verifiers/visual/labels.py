"""When two category names are the same."""

from __future__ import annotations

import unicodedata
from functools import lru_cache


@lru_cache(maxsize=4096)
def fold_label(text: str) -> str:
    """`text` without case, white space, underscores, enclosing quotes and one final full stop (Unicode NFKC).

    'Pink_Primrose.' and '"pink primrose"' are one name; hyphens and digits stay: '737-800' is not '737-900'."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = "".join(folded.replace("_", " ").split()).removesuffix(".")
    while len(folded) > 1 and folded[0] == folded[-1] and folded[0] in "\"'`*":
        folded = folded[1:-1]
    return folded.removesuffix(".")
