//! The durable tables: one file per table says what a row means, byte by byte. No rule and no I/O is here.
#![allow(dead_code, reason = "the actors that use these rows are being written")]
