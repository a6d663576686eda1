//! Owns the actix system and its threads; the program that embeds a broker never sees them.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use actix_rt::{Arbiter, ArbiterHandle, System};

/// The threads of one broker: one for control (root, delay, transactions), some for topics, queues and groups, one
/// for the user code of spawned consumers.
#[derive(Debug)]
pub(crate) struct Runtime {
    system: System,
    arbiters: Arbiters,
    thread: JoinHandle<()>,
}

/// Where actors and tasks may be started. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Arbiters {
    control: ArbiterHandle,
    carriers: Vec<ArbiterHandle>,
    delivery: ArbiterHandle,
    next: AtomicUsize,
}

impl Clone for Arbiters {
    fn clone(&self) -> Self {
        Self {
            control: self.control.clone(),
            carriers: self.carriers.clone(),
            delivery: self.delivery.clone(),
            next: AtomicUsize::new(self.next.load(Ordering::Relaxed)),
        }
    }
}

impl Arbiters {
    /// For the root, the delay scheduler and the transaction checker: never behind a busy queue.
    pub(crate) fn control(&self) -> &ArbiterHandle {
        &self.control
    }

    /// For a topic, queue or group: in turn.
    pub(crate) fn carrier(&self) -> &ArbiterHandle {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.carriers.len();
        &self.carriers[at]
    }

    /// For user code: it can delay other user code, but no actor.
    pub(crate) fn delivery(&self) -> &ArbiterHandle {
        &self.delivery
    }
}

type Started = io::Result<(System, Arbiters)>;

impl Runtime {
    /// Starts the system with `carriers` threads for topics, queues and groups.
    #[expect(clippy::disallowed_methods, reason = "the system's own thread, joined in `stop`")]
    pub(crate) fn start(carriers: usize) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Started>();
        let thread = std::thread::Builder::new().name("cuemq-system".into()).spawn(move || run(carriers, &sender))?;
        let (system, arbiters) = receiver.recv().map_err(|_| io::Error::other("the actor system did not start"))??;
        Ok(Self { system, arbiters, thread })
    }

    pub(crate) fn arbiters(&self) -> &Arbiters {
        &self.arbiters
    }

    /// Stops every actor and joins every thread. Blocks; must not be called from one of them.
    pub(crate) fn stop(self) {
        self.system.stop();
        if self.thread.join().is_err() {
            tracing::error!("the actor system's thread panicked");
        }
    }
}

fn new_tokio() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn run(carriers: usize, started: &mpsc::Sender<Started>) {
    // The system's own runtime panics when it cannot be built; building one first turns that into an error.
    if let Err(error) = new_tokio() {
        let _ = started.send(Err(error));
        return;
    }
    let runner = System::new();
    let arbiters: io::Result<Vec<Arbiter>> = (0..carriers + 2).map(|_| Arbiter::try_with_tokio_rt(new_tokio)).collect();
    let arbiters = match arbiters {
        Ok(arbiters) => arbiters,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let handles: Vec<ArbiterHandle> = arbiters.iter().map(Arbiter::handle).collect();
    let sent = started.send(Ok((
        System::current(),
        Arbiters {
            control: handles[0].clone(),
            delivery: handles[1].clone(),
            carriers: handles[2..].to_vec(),
            next: AtomicUsize::new(0),
        },
    )));
    if sent.is_ok()
        && let Err(error) = runner.run()
    {
        tracing::error!(%error, "the actor system ended with an error");
    }
    for arbiter in arbiters {
        arbiter.stop();
        if arbiter.join().is_err() {
            tracing::error!("an actor thread panicked");
        }
    }
}
