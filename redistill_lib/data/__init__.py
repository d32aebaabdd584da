"""Data sets as three splits of uint8 images.

load_data("cluttered")            # built in, generated from a seed; "pairs" and "digits" likewise
load_data("elpv")                 # solar cells, from an optional package
load_data("hf:uoft-cs/cifar10")   # anything on the Hugging Face hub
load_data("path/to/folder")       # parquet files in the hub's layout, or <split>/<class>/*.png
"""

from redistill_lib.data.augment import Views, to_float
from redistill_lib.data.clutter import Clutter
from redistill_lib.data.images import LazyImages, TensorImages, as_batch
from redistill_lib.data.pairs import Pairs
from redistill_lib.data.sources import Source
from redistill_lib.data.splits import DataSplits, load_data

__all__ = [
    "Clutter",
    "DataSplits",
    "LazyImages",
    "Pairs",
    "Source",
    "TensorImages",
    "Views",
    "as_batch",
    "load_data",
    "to_float",
]
