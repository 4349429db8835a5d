from torch.nn.attention.flex_attention import *
