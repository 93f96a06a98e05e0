"""Your own images with labels and foreground masks."""

from isnet.data.audit import Problem, apply_policy, audit, review
from isnet.data.augmentation import Augmentation, joint_transform
from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.mask_reading import MaskReading
from isnet.data.masked_images import Example, MaskedImages, MaskError, MaskPolicy, Resize, pixel_range
from isnet.data.pixels import mask_reading, read_image, read_mask
from isnet.data.sets import ShardError, read_table
from isnet.data.table import DataError, ImageTable, Record, describe, with_validation

__all__ = [
    "Augmentation",
    "DataError",
    "Example",
    "FileRef",
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
    "describe",
    "joint_transform",
    "mask_reading",
    "pixel_range",
    "read_image",
    "read_mask",
    "read_table",
    "review",
    "with_validation",
]
