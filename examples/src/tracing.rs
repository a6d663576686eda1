//! What the broker logs, on standard error.

use tracing_subscriber::EnvFilter;

/// Shows warnings and errors, or what the environment variable `RUST_LOG` asks for.
pub fn show() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    // A second call, as in a test of several programs, keeps the first one's choice.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
