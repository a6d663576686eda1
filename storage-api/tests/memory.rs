//! The in-memory engine keeps its own laws.
#![cfg(feature = "conformance")]

mod fixture;

use fixture::MemoryFixture;

cuemq_storage_api::conformance_suite!(MemoryFixture);
