//! Starts a program of the examples as a child and kills it with SIGKILL at random moments: what the campaigns share.
//!
//! `CUEMQ_KILL_COUNT` sets the number of kills per engine, `CUEMQ_KILL_SEED` repeats the choice of moments.

#![allow(dead_code, reason = "each campaign takes its own part")]

use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use cuemq_examples::store::StoreArguments;

/// A kill comes up to so many turns of an empty loop after the chosen line.
const MOST_SPINS: u64 = 60_000;
/// The same after the start, while the store is opened or read back and nothing is written yet.
const MOST_SPINS_AT_THE_START: u64 = 300_000;
/// Children that end by themselves before their moment has come do not count, and may be so many for each kill.
const CHILDREN_PER_KILL: u64 = 4;

/// Numbers that are the same for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// When to kill: after so many lines, or, without a number, right after the start; and so many turns of an empty loop
/// later.
#[derive(Clone, Copy, Debug)]
struct Moment {
    lines: Option<u64>,
    spins: u64,
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// Killed while it was running.
    Killed,
    /// By itself and successfully, before the moment had come.
    Finished,
}

/// Kills of one kind of child over one store.
pub(crate) struct Campaign {
    kills: u64,
    most_lines: u64,
    seed: u64,
    random: Random,
    killed: u64,
    children: u64,
}

impl Campaign {
    /// So many kills unless the environment says otherwise, each within so many lines of the child's output. Prints how
    /// to have the same again.
    pub(crate) fn new(test: &str, kills: u64, most_lines: u64) -> Self {
        let seed = from_environment("CUEMQ_KILL_SEED").unwrap_or_else(|| RandomState::new().hash_one(test));
        let kills = from_environment("CUEMQ_KILL_COUNT").unwrap_or(kills);
        let program = env!("CARGO_CRATE_NAME");
        println!(
            "cargo build -p cuemq-examples --examples && CUEMQ_KILL_SEED={seed} CUEMQ_KILL_COUNT={kills} \
             cargo test -p cuemq-examples --test {program} {test} -- --nocapture"
        );
        Self { kills, most_lines, seed, random: Random(seed), killed: 0, children: 0 }
    }

    /// A control: as many kills as it takes, whatever the environment says.
    pub(crate) fn careless(test: &str, kills: u64, most_lines: u64) -> Self {
        Self { kills, ..Self::new(test, kills, most_lines) }
    }

    /// What a failure has to name.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// How many there shall be.
    pub(crate) fn kills(&self) -> u64 {
        self.kills
    }

    /// How many there were.
    pub(crate) fn killed(&self) -> u64 {
        self.killed
    }

    /// Runs the next child and kills it; false when there were kills enough.
    pub(crate) fn kill_next(&mut self, command: Command, line: impl FnMut(&str) -> bool) -> bool {
        if self.killed == self.kills {
            return false;
        }
        let (kills, killed, children) = (self.kills, self.killed, self.children);
        assert!(children < kills * CHILDREN_PER_KILL, "only {killed} of {children} children could be killed in time");
        self.children += 1;
        let moment = self.moment();
        self.killed += u64::from(run(command, Some(moment), line) == Ended::Killed);
        true
    }

    fn moment(&mut self) -> Moment {
        match self.random.below(10) {
            0 | 1 => Moment { lines: None, spins: self.random.below(MOST_SPINS_AT_THE_START) },
            _ => Moment { lines: Some(self.random.below(self.most_lines)), spins: self.random.below(MOST_SPINS) },
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}: give a number")))
}

/// A program of the examples over a store: `cargo test` builds it beside the directory of this test's program.
pub(crate) fn program(name: &str, store: &StoreArguments) -> Command {
    let test = std::env::current_exe().expect("a test knows its own program");
    let program = test.parent().and_then(|deps| deps.parent()).map(|profile| profile.join("examples").join(name));
    let program: PathBuf = program.expect("a test's program lies in target/<profile>/deps");
    assert!(program.exists(), "{} is not built: run cargo build -p cuemq-examples --examples", program.display());
    let mut command = Command::new(program);
    command.args(["--engine", store.engine_name(), "--flush", "durable"]).arg("--dir").arg(&store.dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Runs a child to its end and shows each line of its output.
pub(crate) fn finish(command: Command, line: impl FnMut(&str) -> bool) {
    assert_eq!(run(command, None, line), Ended::Finished);
}

/// Runs a child until the moment comes, or to its end. Each whole line of its output is shown to `line`, which says
/// whether it counts.
fn run(mut command: Command, moment: Option<Moment>, mut line: impl FnMut(&str) -> bool) -> Ended {
    let mut child = command.spawn().expect("the program starts");
    let mut output = BufReader::new(child.stdout.take().expect("the output is piped"));
    let finished = match moment {
        None => read(&mut output, u64::MAX, &mut line),
        Some(Moment { lines: None, .. }) => false,
        Some(Moment { lines: Some(lines), .. }) => read(&mut output, lines, &mut line),
    };
    if finished {
        let status = child.wait().expect("a child can be waited for");
        assert!(status.success(), "the program failed: {status}");
        return Ended::Finished;
    }
    for _ in 0..moment.map_or(0, |moment| moment.spins) {
        std::thread::yield_now();
    }
    kill(child, &mut output, &mut line)
}

fn kill(mut child: Child, output: &mut BufReader<ChildStdout>, line: &mut impl FnMut(&str) -> bool) -> Ended {
    // On Unix this is SIGKILL. It may come too late, and then the child has ended by itself.
    child.kill().expect("a child can be killed");
    // What was written before the kill was true before it.
    read(output, u64::MAX, line);
    let status = child.wait().expect("a child can be waited for");
    if status.code().is_none() {
        return Ended::Killed;
    }
    assert!(status.success(), "the program failed before it was killed: {status}");
    Ended::Finished
}

/// Reads lines until more than enough count; true when the output ended before.
fn read(output: &mut BufReader<ChildStdout>, enough: u64, line: &mut impl FnMut(&str) -> bool) -> bool {
    let (mut counted, mut text) = (0, String::new());
    while counted <= enough {
        text.clear();
        if output.read_line(&mut text).expect("the output is text") == 0 {
            return true;
        }
        // A line that was cut off by the kill has no end, and is no evidence.
        counted += u64::from(text.strip_suffix('\n').is_some_and(&mut *line));
    }
    false
}
