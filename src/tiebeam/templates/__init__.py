"""Platform templates: what each platform needs to run a pipeline, generated from its options."""
