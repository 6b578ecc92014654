"""Speed and memory of the model at real sizes with random weights, one table for each claim.

`python -m comfyui_multitalk.dev.benchmarks.speed [TABLE ...] --scale 14b --device cuda --out DIR`.
Each module named in `__main__.TABLES` measures one table. Random weights are drawn on the device,
so no file is read. Compare only the ratios within one run.
"""
