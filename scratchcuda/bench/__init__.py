"""Measures training beside torch.nn and others who do the same: ``scratchcuda bench``.

:mod:`~scratchcuda.bench.rows` lists what is measured; :mod:`~scratchcuda.bench.fits`,
:mod:`~scratchcuda.bench.operations` and :mod:`~scratchcuda.bench.drop_in` measure a row;
:mod:`~scratchcuda.bench.peers` and :mod:`~scratchcuda.bench.other_peers` take part.
"""
