//! Every target that needs no process of its own, measured once in small and checked. `cargo bench -- --test` has the
//! others too.
#![expect(clippy::unwrap_used, reason = "a test may fail by a panic")]

use cuemq_benches::place::Place;
use cuemq_benches::profile::Profile;
use cuemq_benches::targets::scale::Scale;
use cuemq_benches::targets::{ALL, Context};

fn run(number: u8) {
    let directory = tempfile::tempdir().unwrap();
    let profile = Profile::tiny();
    let context = Context {
        scale: Scale::of(&profile),
        profile,
        place: Place::at(directory.path().join("stores")).unwrap(),
        program: None,
        target: directory.path().to_owned(),
    };
    let target = ALL.iter().find(|target| target.numbers.contains(&number)).unwrap();
    let rows = target.measure(&context).unwrap();
    assert!(rows.iter().any(|row| row.number == number), "target {number} has rows");
    for row in rows {
        assert!(row.verified > 0, "{} counts what was checked", row.name);
        assert!(row.limit > 0.0 && row.ratio.median.is_finite(), "{} has a limit", row.name);
    }
    let left = std::fs::read_dir(context.place.directory()).unwrap().count();
    assert_eq!(left, 0, "target {number} leaves nothing behind");
}

macro_rules! targets {
    ($($test:ident => $number:literal,)*) => {$(
        #[test]
        fn $test() {
            run($number);
        }
    )*};
}

targets! {
    raw_apply => 1,
    through_the_actors => 2,
    latency => 4,
    group_commit => 5,
    fetch => 6,
    lsm => 7,
    opening => 8,
    growth => 10,
    supervision => 12,
}
