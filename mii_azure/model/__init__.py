"""Models before they are loaded: folders, the hub, safetensors headers, families and profiles."""
