"""Tensors and the arena: handle → tensor without a copy, tensor → handle with at most one.

The only way from raw shared memory to torch and Arrow. Importing its modules imports torch.
"""
