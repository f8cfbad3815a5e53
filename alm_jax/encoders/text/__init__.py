"""Text encoders: token ids [B L] to one vector [B D]."""
