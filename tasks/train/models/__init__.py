"""The zoo: networks by model type and backbone, built from well-kept libraries."""
