"""Everything ComfyUI sees of the pack: nodes read inputs, call core and wrap outputs."""
