"""Private names of other libraries: everything that optkit needs of them and that no documented name gives.

A file holds what one library, or one part of torch, keeps private. No other module of optkit touches a private name; a
test in tests/core/test_compat.py checks that. Where a name is gone, a `UserError` says which version is installed and
which ones optkit supports (`versions`).

Operators such as ``aten._softmax`` are named by torch's schemas, and not by its Python API. Exported graphs hold these
names, and some kernels have no other. They are looked up in one place, too: `torch_operators.private_aten`.
"""
