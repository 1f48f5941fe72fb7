"""Small autoencoders and text encoders of one's own, where no trained ones are at hand."""
