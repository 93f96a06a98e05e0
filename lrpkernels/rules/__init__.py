"""The rules, one small class each."""

from .base import Rule
from .epsilon import Epsilon
from .zbox import ZBox

__all__ = ["Epsilon", "Rule", "ZBox"]
