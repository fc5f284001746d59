"""Where a loop goes: files, the hub, an export."""
