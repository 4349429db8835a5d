from scratchcuda.nn import *
