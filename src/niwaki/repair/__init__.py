"""What is left is refitted, and if asked trained, so that it does the work of what went."""

from niwaki.repair.bottom_up import REFIT_PASSES
from niwaki.repair.recover import recover_
from niwaki.repair.refit import refit_
from niwaki.repair.training import task_loss, train_

__all__ = ["REFIT_PASSES", "recover_", "refit_", "task_loss", "train_"]
