"""What the models of the Soft MoE paper cost: its figures beside ours."""
