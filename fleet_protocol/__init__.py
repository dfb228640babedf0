"""The wire contract between coordinator and agents: architecture, topics, messages, codec, errors, transports."""
