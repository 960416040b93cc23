"""Masks that move while a model trains: what is small is dropped, what matters returns, the count is always exact."""

from niwaki.methods.dynamic.callback import DynamicSparsity, schedule_table
from niwaki.methods.dynamic.controller import Controller
from niwaki.methods.dynamic.history import Update, read_history, write_history
from niwaki.methods.dynamic.plots import write_training
from niwaki.methods.dynamic.saved import restore_controller_, save_controller
from niwaki.methods.dynamic.schedules import Schedule, plan_schedule
from niwaki.methods.dynamic.stage import prune_dynamically_, train_dynamic

__all__ = [
    "Controller",
    "DynamicSparsity",
    "Schedule",
    "Update",
    "plan_schedule",
    "prune_dynamically_",
    "read_history",
    "restore_controller_",
    "save_controller",
    "schedule_table",
    "train_dynamic",
    "write_history",
    "write_training",
]
