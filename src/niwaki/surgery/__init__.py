"""Units go: smaller matrices, and the shapes that follow, in the config."""

from niwaki.surgery.cut import Kept, cut_, output_inside, stale_numbers

__all__ = ["Kept", "cut_", "output_inside", "stale_numbers"]
