"""Audio encoders: log-mel features [B T F] to one vector [B D]."""
