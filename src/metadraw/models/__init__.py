"""Networks: any `torch.nn.Module` without in-place buffers, one file each."""
