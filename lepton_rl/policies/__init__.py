"""The policies that ship with the package (safetensors files)."""
