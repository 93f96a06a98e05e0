"""Your own images with labels and foreground masks."""

from isnet.data.audit import Problem, apply_policy, audit, review
from isnet.data.augmentation import Augmentation, joint_transform
from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.masked_images import Example, MaskedImages, MaskError, MaskPolicy, Resize, pixel_range
from isnet.data.pixels import read_image, read_mask
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
    "pixel_range",
    "read_image",
    "read_mask",
    "read_table",
    "review",
    "with_validation",
]
