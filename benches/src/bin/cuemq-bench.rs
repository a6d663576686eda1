//! Runs OpenMessaging workloads against an embedded broker; see `cuemq_benches::openmessaging`.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use cuemq_benches::Result;
use cuemq_benches::openmessaging::command::Arguments;
use tokio::sync::watch;

/// What a shell expects of a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody can be told that standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stopper, stop) = watch::channel(false);
    let text = runtime.block_on(async {
        tokio::spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                if stopper.send_replace(true) {
                    std::process::exit(INTERRUPTED);
                }
            }
        });
        arguments.execute(stop).await
    })?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}
