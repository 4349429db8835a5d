from scratchcuda.nn import *
from scratchcuda.nn.modules import activation as activation
from scratchcuda.nn.modules import batchnorm as batchnorm
from scratchcuda.nn.modules import container as container
from scratchcuda.nn.modules import conv as conv
from scratchcuda.nn.modules import dropout as dropout
from scratchcuda.nn.modules import linear as linear
from scratchcuda.nn.modules import loss as loss
from scratchcuda.nn.modules import module as module
from scratchcuda.nn.modules import normalization as normalization
from scratchcuda.nn.modules import pooling as pooling
from scratchcuda.nn.modules import rnn as rnn
from scratchcuda.nn.modules import transformer as transformer
