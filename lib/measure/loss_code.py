"""Which version of the code losses are of."""

from importlib.metadata import version

from lib.loaded import files_hash
from lib.paths import ROOT

# what a loss hangs on, but for the model and the text
PARTS = ("cache", "compressors", "measure/perplexity.py", "measure/rows.py")
BENEATH = ("torch", "transformers")


def loss_code() -> str:
    """The code that a loss hangs on, as a hash: where it is the same nothing is computed again."""
    places = [ROOT / "lib" / part for part in PARTS]
    files = [x for place in places for x in ([place] if place.is_file() else place.glob("*.py"))]
    return " ".join([files_hash(files, ROOT), *map(version, BENEATH)])
