"""Your own images with labels and foreground masks."""

from isnet.data.audit import apply_policy, audit
from isnet.data.augmentation import Augmentation, joint_transform
from isnet.data.checks import check
from isnet.data.facts import Facts, Problem, examine
from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.findings import Finding
from isnet.data.mask_reading import MaskReading
from isnet.data.masked_images import Example, MaskedImages, MaskError, MaskPolicy, Resize, pixel_range
from isnet.data.names import DataError
from isnet.data.pixels import mask_reading, read_image, read_mask
from isnet.data.sets import ShardError, read_table
from isnet.data.table import ImageTable, Record, describe, with_validation

__all__ = [
    "Augmentation",
    "DataError",
    "Example",
    "Facts",
    "FileRef",
    "Finding",
    "ImageTable",
    "MaskError",
    "MaskPolicy",
    "MaskReading",
    "MaskedImages",
    "Problem",
    "Record",
    "Resize",
    "ShardError",
    "UnreadableFileError",
    "apply_policy",
    "audit",
    "check",
    "describe",
    "examine",
    "joint_transform",
    "mask_reading",
    "pixel_range",
    "read_image",
    "read_mask",
    "read_table",
    "with_validation",
]
