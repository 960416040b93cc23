"""What is left is refitted so that it does the work of what went."""

from niwaki.repair.refit import refit_

__all__ = ["refit_"]
