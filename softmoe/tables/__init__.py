"""Tables made from what runs leave behind."""
