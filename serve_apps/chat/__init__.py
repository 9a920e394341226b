"""Chat: engines that produce tokens, the conversations around them, and the bytes that leave."""
