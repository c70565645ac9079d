"""LoRA adapters in PEFT's form: what their files say, and their low-rank products beside a model's own."""
