"""The line camera: a folder is watched, each photo that appears in it is inspected. May import what `server` may."""
