"""What all Tandem services share."""
