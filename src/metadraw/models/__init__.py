"""Networks: any `torch.nn.Module` that does not change its own buffers, one file each."""
