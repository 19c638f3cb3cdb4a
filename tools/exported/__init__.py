"""A product as one file that decides its parts without torch and without a database: written here, opened on a device."""
