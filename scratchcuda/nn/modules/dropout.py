from torch.nn.modules.dropout import *
