from torch.nn.modules.transformer import *
