from torch.nn.modules.rnn import *
