"""The task store: what people and agents have to do, in which order, and how far it is."""
