from torch.nn.modules.container import *
