//! The registry in a SQLite file.
