"""What the stores keep of products, photos, golden samples and calibrations, as plain values. Loads no database."""
