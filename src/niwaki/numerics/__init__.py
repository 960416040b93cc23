"""Numerical building blocks: damped solves, half precision on processors without kernels, layout of weights."""
