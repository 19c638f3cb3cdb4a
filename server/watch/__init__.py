"""The watched folder of a line camera: each new photo is inspected and filed exactly once."""
