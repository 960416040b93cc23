"""Numerical building blocks: damped solves, half precision without kernels, layout of weights, decimals."""
