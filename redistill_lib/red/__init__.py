"""Residual encoded distillation: the block, its forms for inference, its loss, and blocks in a network."""

from redistill_lib.red.block import (
    DISTANCES,
    OF_TOKENS,
    RedBlock,
    alignment_loss,
    check_distance,
    check_form,
    check_maps,
)
from redistill_lib.red.grid import GridBlock, as_map, check_grid, describe_block, restore_place, tokens_in_front
from redistill_lib.red.in_place import InPlaceRedBlock, fold_blocks, make_in_place
from redistill_lib.red.layers import (
    BlockedLayer,
    Side,
    first_parameter,
    insert_blocks,
    inserted_blocks,
    original_paths,
)

__all__ = [
    "DISTANCES",
    "OF_TOKENS",
    "BlockedLayer",
    "GridBlock",
    "InPlaceRedBlock",
    "RedBlock",
    "Side",
    "alignment_loss",
    "as_map",
    "check_distance",
    "check_form",
    "check_grid",
    "check_maps",
    "describe_block",
    "first_parameter",
    "fold_blocks",
    "insert_blocks",
    "inserted_blocks",
    "make_in_place",
    "original_paths",
    "restore_place",
    "tokens_in_front",
]
